"""The key-value example with a value that ends the enclave that executes it, as a fault of an interpreter would."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kv_ledger import KeyValueLedger

BOMB = b"bomb"


class Bomb(KeyValueLedger):
    async def execute(self, batch, tx, block):
        if any(bytes.fromhex(envelope.payload["value"]) == BOMB for envelope in batch):
            os._exit(9)
        return await super().execute(batch, tx, block)


def adapter(settings: Mapping[str, Any]) -> Bomb:
    return Bomb(settings)
