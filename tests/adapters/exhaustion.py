"""The key-value example with values that take memory from whoever gets them: ``exhaust N`` has the N-th allocation from
then on fail, of those in calls of the extension that have a budget; on whichever thread of the node that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coco._native import exhaust_for_test
from coco.enclave.adapters.contract import BlockContext, Envelope, Outcome
from coco.enclave.store import StoreTransaction
from kv_ledger import Changes, KeyValueLedger

PREFIX = b"exhaust "


def _take(value: bytes) -> None:
    if value.startswith(PREFIX):
        exhaust_for_test(int(value.removeprefix(PREFIX)))


class Exhausting(Changes):
    async def run(self, envelope: Envelope) -> Outcome:
        _take(bytes.fromhex(envelope.payload["value"]))
        return await super().run(envelope)


class Exhaustion(KeyValueLedger):
    def parse_submission(self, request):
        _take(request.body)  # at the node that the client has asked
        return super().parse_submission(request)

    async def open(self, tx: StoreTransaction, block: BlockContext) -> Exhausting:
        return Exhausting(tx, block)


def adapter(settings: Mapping[str, Any]) -> Exhaustion:
    return Exhaustion(settings)
