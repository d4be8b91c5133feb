"""The contract between the framework and a ledger protocol.

Who does what:

* The framework owns sockets, callers, the pool, the order, sealing, commit and time. An adapter opens no socket and no
  file, reads no clock and draws no randomness but what a call gives it.
* The adapter parses requests, checks and executes transactions on a store transaction, answers queries on a store view,
  and decides in :meth:`LedgerAdapter.redact` who sees what, which the framework applies to whatever is told
  (``visible.py``). Nothing is taken from a request's own ``from``.
* Replicated state is only in the store. What an adapter derives from it (tries, indexes, filters) it keeps by the hooks
  ``applied``, ``rolled_back`` and ``rebuild``, on every node alike.

The way of one submission: ``parse_submission`` -> ``admit`` -> pool (``PoolPolicy``) -> ``accepted`` ->
``open`` -> ``run`` -> ``close`` -> ledger -> ``applied`` -> commit -> ``committed`` -> ``acknowledge``.
"""

from __future__ import annotations

from coco.configuration.callers import Caller, CallerKind
from coco.enclave.adapters.contract import headers, mounts, visible
from coco.enclave.adapters.contract.adapter import LedgerAdapter
from coco.enclave.adapters.contract.declared import Algorithm, AskBack, Asked, Back, Child, Key
from coco.enclave.adapters.contract.execution import (
    BatchSession,
    BlockContext,
    Envelope,
    Outcome,
    PoolPolicy,
    Settled,
    Verdict,
    WholeBatchSession,
)
from coco.enclave.adapters.contract.external import ExternalSession
from coco.enclave.adapters.contract.routes import (
    AdapterError,
    AdapterFault,
    Cost,
    Manifest,
    Reply,
    Request,
    Route,
    RouteKind,
    Subscriptions,
    Table,
)
from coco.enclave.adapters.contract.services import AdapterServices
from coco.enclave.adapters.contract.streams import Events, Stream
from coco.enclave.adapters.contract.visible import Visible

__all__ = [
    "AdapterError",
    "AdapterFault",
    "AdapterServices",
    "Algorithm",
    "AskBack",
    "Asked",
    "Back",
    "BatchSession",
    "BlockContext",
    "Caller",
    "CallerKind",
    "Child",
    "Cost",
    "Envelope",
    "Events",
    "ExternalSession",
    "Key",
    "LedgerAdapter",
    "Manifest",
    "Outcome",
    "PoolPolicy",
    "Reply",
    "Request",
    "Route",
    "RouteKind",
    "Settled",
    "Stream",
    "Subscriptions",
    "Table",
    "Verdict",
    "Visible",
    "WholeBatchSession",
    "headers",
    "mounts",
    "visible",
]
