"""The key-value example as later versions have it: the second says in every row who may read it, the third is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coco.enclave.adapters.contract import BlockContext, Manifest
from coco.enclave.store import StoreTransaction
from kv_ledger import KeyValueLedger


class Second(KeyValueLedger):
    def manifest(self) -> Manifest:
        return replace(super().manifest(), version="2")

    async def migrate(self, stored: str, tx: StoreTransaction, block: BlockContext) -> None:
        assert stored == "1"
        for key, row in list(tx.scan("kv.rows")):
            document = {**json.loads(row), "readers": [], "migrated_ms": block.time_ms}
            tx.put("kv.rows", key, json.dumps(document, sort_keys=True).encode())


class Third(KeyValueLedger):
    def manifest(self) -> Manifest:
        return replace(super().manifest(), version="3")


class Broken(Third):
    async def migrate(self, stored: str, tx: StoreTransaction, block: BlockContext) -> None:
        raise RuntimeError("a migration with a bug")


def adapter(settings: Mapping[str, Any]) -> Second:
    return Second(settings)


def third(settings: Mapping[str, Any]) -> Third:
    return Third(settings)


def broken(settings: Mapping[str, Any]) -> Broken:
    return Broken(settings)
