"""The JSON-RPC methods of the Ethereum adapter (execution-apis; docs/ethereum.md says which and for whom).

Wire rules: ``params`` absent, null or a list; ``data`` and ``input`` mean the same; quantities without leading zeros;
a revert is error 3 with the revert bytes as data; an unknown block is null or "header not found".
"""

from __future__ import annotations

from coco.enclave.adapters.contract import Route, RouteKind, Subscriptions
from coco.enclave.adapters.ethereum.rpc import blocks, calls, chain, logs, state, transactions
from coco.enclave.adapters.ethereum.rpc.registry import METHODS, PUBLIC

__all__ = ["METHODS", "PUBLIC", "ROUTES", "SUBSCRIPTIONS", "blocks", "calls", "chain", "logs", "state", "transactions"]

_SUBMISSIONS = {
    "eth_sendRawTransaction": RouteKind.SUBMIT,
    "eth_sendRawTransactionSync": RouteKind.SUBMIT_AND_WAIT,
}

ROUTES = (
    *(Route(name, RouteKind.QUERY) for name in METHODS),
    *(Route(name, kind) for name, kind in _SUBMISSIONS.items()),
)
SUBSCRIPTIONS = Subscriptions("eth_subscribe", "eth_unsubscribe", "eth_subscription")
