"""The key-value example with a value that ends the enclave that executes it, as a fault of an interpreter would."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from coco.enclave.adapters.contract import BlockContext, Envelope, Outcome
from coco.enclave.store import StoreTransaction
from kv_ledger import Changes, KeyValueLedger

BOMB = b"bomb"


class Armed(Changes):
    async def run(self, envelope: Envelope) -> Outcome:
        if bytes.fromhex(envelope.payload["value"]) == BOMB:
            os._exit(9)
        return await super().run(envelope)


class Bomb(KeyValueLedger):
    async def open(self, tx: StoreTransaction, block: BlockContext) -> Armed:
        return Armed(tx, block)


def adapter(settings: Mapping[str, Any]) -> Bomb:
    return Bomb(settings)
