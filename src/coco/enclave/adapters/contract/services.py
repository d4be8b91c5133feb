"""What the framework gives an adapter at its start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from coco.enclave.adapters.contract.declared import Asked
from coco.enclave.adapters.contract.execution import Envelope
from coco.enclave.adapters.contract.external import ExternalSession
from coco.enclave.store import StoreView
from coco.errors import AccessError, ChildError, NotFoundError


def _no_external(name: str) -> ExternalSession:
    raise AccessError("the adapter did not declare this processor", code="external.not_declared")


def _no_child(name: str) -> Asked:
    raise ChildError(f"no child {name[:32]} was declared", code="child.not_declared")


async def _no_key(name: str, data: bytes) -> bytes:
    raise NotFoundError(f"there is no key {name[:32]}", code="key.unknown")


@dataclass(slots=True)
class AdapterServices:
    """What the framework gives an adapter at its start."""

    #: The current pool, for ``pending``: envelope by id, and the position after the last of a lane. At a backup: what
    #: came to this node, and what the primary says.
    pooled: Callable[[bytes], Envelope | None]
    pending_position: Callable[[Hashable], Awaitable[int | None]]
    #: The store at its newest version, committed or not: for ``applied``.
    newest: Callable[[], StoreView]
    #: The proof, from what its entry claims (:attr:`Outcome.item`), of a transaction that :attr:`Manifest.transactions`
    #: has, with the seqno of that entry; None: there is none. Whoever is shown it sees the item.
    prove_item: Callable[[bytes, StoreView], Awaitable[tuple[int, dict[str, Any]] | None]]
    #: Asks an external processor that the manifest names; not confidential.
    call_external: Callable[[str, bytes], Awaitable[bytes]]
    #: Runs a call of the extension without holding up the event loop: for executing batches.
    run: Callable[..., Awaitable[Any]]
    #: Runs a call of the extension that is made to run in the background (``begin(background, ...) -> ticket``): for
    #: what is short and often.
    run_background: Callable[..., Awaitable[Any]]
    #: The same as ``run`` for queries, on threads of their own, so that no query can hold up a batch, and in turn by
    #: actor, so that no actor's queries can hold up another's.
    run_query: Callable[..., Awaitable[Any]]
    #: The same for what gives many items, which everything else goes before.
    run_list: Callable[..., Awaitable[Any]]
    #: A session with such a processor, which may ask back; one that the manifest does not name is an error
    #: (``external.not_declared``).
    external: Callable[[str], ExternalSession] = _no_external
    #: A child process that the adapter's factory declared, to be asked; one that it did not declare is an error
    #: (``child.not_declared``).
    child: Callable[[str], Asked] = _no_child
    #: Signs with a key that the manifest declares (:class:`Key`), as it is committed; the same key at every node. There
    #: is none while the adapter writes its genesis (``key.unknown``).
    sign: Callable[[str, bytes], Awaitable[bytes]] = _no_key
    #: PEM of the certificates of such a key under the service, the newest first.
    certificates: Callable[[str], Sequence[str]] = lambda name: ()
