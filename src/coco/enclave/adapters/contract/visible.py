"""What is told, and of whom: every reply and every event passes ``redact``, which the framework calls.

Rules:

* What an adapter tells is :class:`Visible`: the items that it tells of, and how it is rendered from those that are
  left; or it says of it that it is ``public``, which tells of nobody's. What is neither is a fault of the adapter
  (``adapter.not_redacted``), and nothing of it is told: an adapter that forgets leaks nothing.
* :meth:`LedgerAdapter.redact` decides, in one place, by the items' own types. It may leave items out, and put abridged
  ones in their place. It is asked when the answer or the event is ready, about the caller as it is then.
* ``render`` tells of nothing but the items that it is given. It must answer to none left exactly as to what does not
  exist. What takes long in it may be awaited.
* What a query has looked through for a caller already it may mark, so that ``redact`` need not look again. How long
  something takes tells, too: whoever hides that something is there does so in ``query``.

Refusals are not redacted: an adapter raises none that tells more than its caller may know.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from coco.configuration.callers import Caller
from coco.enclave.adapters.contract.routes import AdapterFault
from coco.enclave.store import StoreView

Redact = Callable[[Sequence[Any], Caller, StoreView], list[Any]]


class Visible(msgspec.Struct, frozen=True):
    """Something to tell."""

    items: Sequence[Any]
    #: Gets the items that the caller may see; its answer, or an awaitable of it, is what is told.
    render: Callable[[list[Any]], Any | Awaitable[Any]]


def not_redacted(name: str) -> AdapterFault:
    """What becomes of something that says neither of whom it tells, nor that it tells of nobody."""
    return AdapterFault(
        f"{name} says neither of whom its answer tells nor that it tells of nobody",
        code="adapter.not_redacted",
        hint="this is a fault of the adapter, not of the request",
    )


async def told(value: Any, redact: Redact, caller: Caller, view: StoreView, *, public: bool, name: str) -> Any:
    """What the caller is told of a value.

    Args:
        value: of an adapter.
        redact: the adapter's.
        caller: who is told, as it is now.
        view: committed state.
        public: whether the adapter says that it tells of nobody's.
        name: of the route.

    Raises:
        AdapterFault: the adapter does not say of whom it tells (``adapter.not_redacted``).
        CocoError: ``render`` refuses.
    """
    if not isinstance(value, Visible):
        if not public:
            raise not_redacted(name)
        return value
    rendered = value.render(redact(value.items, caller, view))
    return await rendered if inspect.isawaitable(rendered) else rendered
