"""What an adapter is asked and answers: its manifest, routes, requests, replies and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec

from coco.enclave.adapters.contract.declared import Key
from coco.errors import CocoError

#: One for all replies: they are made where every microsecond counts.
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class RouteKind(Enum):
    """How the framework serves a request."""

    #: Answered by ``query`` from committed state.
    QUERY = "query"
    #: Transactions for the pool, answered by ``accepted`` once they are in it.
    SUBMIT = "submit"
    #: The same, answered by ``acknowledge`` once they are committed.
    SUBMIT_AND_WAIT = "submit_and_wait"
    #: Messages both ways over a WebSocket, served by ``stream``: a route of HTTP with the method ``GET``.
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of request: a JSON-RPC method (``path`` empty) or an HTTP route of the application listener."""

    name: str
    kind: RouteKind
    #: "GET", "POST", ...; empty for JSON-RPC.
    method: str = ""
    #: Path below the adapter's mount, with ``{names}`` as Starlette writes them, such as ``/kv/{key}``; empty for
    #: JSON-RPC.
    path: str = ""
    #: Lower-case names of the request headers that it is given; nothing else of them is copied.
    headers: Sequence[str] = ()
    #: What a body may have at most, of an HTTP route; 0: what the listener takes (``limits.BODY_BYTES_MAX``).
    body_bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """JSON-RPC methods over WebSocket that begin and end a stream (``streams.py``), and the name under which it tells.

    ``stream`` is asked by a request with the name of ``subscribe``.
    """

    subscribe: str
    unsubscribe: str
    notification: str


@dataclass(frozen=True, slots=True)
class Table:
    """A private table of the adapter; its name begins with the adapter's."""

    name: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter declares."""

    name: str
    version: str
    routes: Sequence[Route]
    tables: Sequence[Table]
    #: Log table whose keys are the ids of the transactions that were included; empty if there is none.
    transactions: str = ""
    #: Type of the replies that outcomes record, which msgspec can encode; None: none is recorded.
    reply: Any = None
    #: Its sessions wait for somebody outside the enclave, or for a child: batches run on a snapshot while others write,
    #: and again if what they have read has changed.
    waits_outside: bool = False
    #: Keys that enclaves make for it and sign with (:attr:`AdapterServices.sign`).
    keys: Sequence[Key] = ()
    #: Names of external processors that it may call through the host: those see what they are given (H4).
    externals: Sequence[str] = ()
    #: Path below which its routes and its JSON-RPC are (``mounts.py``), such as ``/quorum``.
    mount: str = "/"
    #: JSON-RPC methods that begin and end a stream; None: it has none such.
    subscriptions: Subscriptions | None = None


class Request(msgspec.Struct, frozen=True):
    """A request as the front end parsed it."""

    #: Name of the route.
    name: str
    #: JSON-RPC parameters; for an HTTP route the path parameters.
    params: Sequence[Any] | Mapping[str, Any]
    body: bytes = b""
    #: Of the path; of JSON-RPC only where the adapter's mount is not ``/``.
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Random bytes that no other request has; for routes of HTTP.
    nonce: bytes = b""
    #: Those that the route asks for (:attr:`Route.headers`) and that the client sent, by lower-case name; what came
    #: several times is joined by commas. Of JSON-RPC only where the adapter's mount is not ``/``.
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: What follows the adapter's mount in the path, decoded, of JSON-RPC: empty, or with a slash at its beginning.
    rest: str = ""

    def param(self, name: str) -> str:
        """A path parameter of an HTTP route.

        Raises:
            AdapterError: the request has none of that name (``request.no_parameter``).
        """
        if isinstance(self.params, Mapping) and name in self.params:
            return str(self.params[name])
        raise AdapterError(f"the request has no {name}", code="request.no_parameter")


class Cost(msgspec.Struct, frozen=True):
    """What answering a request takes, at most, as far as that can be known before it runs.

    It is what the caller's budget pays (``api/budget.py``), not what scheduling goes by.
    """

    #: Microseconds of the event loop; what runs on threads of its own is bounded there.
    work_us: int = 40
    #: Memory of the answer while it is made.
    answer_bytes: int = 1024


class Reply(msgspec.Struct, frozen=True):
    """An answer. For JSON-RPC ``value`` is the result; for HTTP it is JSON, or bytes with their type.

    ``value`` is :class:`Visible`, which the framework redacts; anything else only with ``public`` (``visible.py``).
    """

    value: Any
    status: int = 200
    content_type: str = "application/json"
    #: Of an HTTP route's answer: names without those that the framework writes itself, values of printable ASCII.
    headers: Mapping[str, str] = _NO_HEADERS
    #: Says that ``value`` tells of nobody's but the caller's own, whatever it is.
    public: bool = False


class AdapterFault(CocoError):
    """The adapter has broken its contract with the framework; nothing of what it gave is told."""

    code = "adapter.fault"
    http_status = 500


class AdapterError(CocoError):
    """A refusal in the protocol's own terms.

    Attributes:
        rpc_code: JSON-RPC error code.
        data: JSON-RPC error data, such as revert bytes.
    """

    code = "adapter.refused"
    http_status = 400

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        rpc_code: int = -32000,
        data: Any = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.rpc_code = rpc_code
        self.data = data
