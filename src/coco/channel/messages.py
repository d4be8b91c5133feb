"""Typed messages of the control channel.

Rules: every field has a type and a bound that decoding checks; unknown tags and fields are refused; nothing here is
trusted because it decoded. Log and exit messages carry registered codes, numbers and public ids, never free text (H1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coco import limits
from coco.errors import HostLiedError

Seqno = Annotated[int, Meta(ge=0, lt=1 << 62)]
Milliseconds = Annotated[int, Meta(ge=0, lt=limits.TIME_MS_MAX)]
EntryBytes = Annotated[bytes, Meta(max_length=limits.ENTRY_BYTES_MAX)]
IndexBlockBytes = Annotated[bytes, Meta(max_length=limits.INDEX_BLOCK_BYTES_MAX)]
SnapshotPartBytes = Annotated[bytes, Meta(max_length=limits.SNAPSHOT_PART_BYTES_MAX)]
PartNumber = Annotated[int, Meta(ge=0, lt=limits.SNAPSHOT_PARTS_MAX)]
Name = Annotated[str, Meta(max_length=128)]
Code = Annotated[str, Meta(max_length=64, pattern=r"^[a-z_.]+$")]
Request = Annotated[int, Meta(ge=0, lt=1 << 62)]
#: A public id: hex, a transaction id, or empty.
PublicId = Annotated[str, Meta(max_length=128, pattern=r"^[0-9a-zA-Z_.:-]*$")]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


# --- host to enclave ---------------------------------------------------------------------------------------------


class Start(_Message, frozen=True, tag="start"):
    """The first message: how this process begins."""

    mode: Literal["create", "recover", "join"]
    #: Seqno of the last entry on the disk; 0 when there is none.
    last_seqno: Seqno
    time_ms: Milliseconds
    #: Genesis document, JSON; only for ``create``.
    genesis: Annotated[bytes, Meta(max_length=4 * limits.MIB)]
    #: PEM of the service certificate that the operator expects to recover; may be empty.
    expected_service: Annotated[bytes, Meta(max_length=16 * limits.KIB)]
    #: Transaction id that the recovered ledger must contain; may be empty.
    expected_position: PublicId
    #: Names for the node certificate.
    host_names: Annotated[list[Name], Meta(max_length=32)]
    #: Where other nodes' hosts reach this one: ``host:port``.
    peer_address: Name
    #: Where a joiner asks first; only for ``join``.
    peers: Annotated[list[Name], Meta(max_length=limits.NODES_MAX)]
    #: SHA-256 of the rules that a joiner's owner has approved; empty: any.
    expected_constitution: Annotated[bytes, Meta(max_length=32)] = b""
    #: The operator says that the clock is right, whatever the end of the ledger says; only for ``recover``.
    accept_clock: bool = False


class Appended(_Message, frozen=True, tag="appended"):
    """Everything up to ``seqno`` is on the disk and synced."""

    seqno: Seqno


class Entries(_Message, frozen=True, tag="entries"):
    """The answer to :class:`Read`."""

    request: Request
    entries: Annotated[list[EntryBytes], Meta(max_length=limits.READ_ENTRIES_MAX)]


class Truncated(_Message, frozen=True, tag="truncated"):
    """Everything above ``seqno`` is gone."""

    seqno: Seqno


class IndexBlock(_Message, frozen=True, tag="index_block"):
    """The answer to :class:`ReadIndex`; empty when the host has no such block."""

    request: Request
    block: IndexBlockBytes


class SnapshotWritten(_Message, frozen=True, tag="snapshot_written"):
    """The answer to :class:`WriteSnapshot`: the part is on the disk and synced."""

    request: Request


class SnapshotPart(_Message, frozen=True, tag="snapshot_part"):
    """The answer to :class:`ReadSnapshot`; empty when the host has no such part."""

    request: Request
    part: SnapshotPartBytes


class Tick(_Message, frozen=True, tag="tick"):
    """The host's clock, about once a second."""

    time_ms: Milliseconds


class ExternalReceived(_Message, frozen=True, tag="external_received"):
    """What an external processor said in a session."""

    session: Request
    body: Annotated[bytes, Meta(max_length=limits.EXTERNAL_BYTES_MAX)]


class ExternalClosed(_Message, frozen=True, tag="external_closed"):
    """A session is over: the processor ended it, could not be reached, or said what is no message."""

    session: Request
    reason: Literal["ended", "unreachable", "broken"]


class OwnerStatement(_Message, frozen=True, tag="owner_statement"):
    """The owner's signature over :class:`Identity`: COSE Sign1 (``coco.ledger.statements``)."""

    statement: Annotated[bytes, Meta(max_length=64 * limits.KIB)]


class Endorsed(_Message, frozen=True, tag="endorsed"):
    """What vendors say of the platform, a JSON object of texts; empty: nothing. Request 0: an offer, unasked."""

    request: Request
    endorsements: Annotated[bytes, Meta(max_length=limits.ENDORSEMENTS_BYTES_MAX)]


class DialFailed(_Message, frozen=True, tag="dial_failed"):
    """The other node cannot be reached there."""

    dial: Request


class Stop(_Message, frozen=True, tag="stop"):
    """End in good order."""


# --- enclave to host ---------------------------------------------------------------------------------------------


class Ready(_Message, frozen=True, tag="ready"):
    """The enclave is locked down and serves; or it waits for recovery shares."""

    node_id: PublicId
    status: Name
    service: Annotated[bytes, Meta(max_length=16 * limits.KIB)]
    position: PublicId
    discarded_entries: Seqno


class Identity(_Message, frozen=True, tag="identity"):
    """Who this process is, for its owner to sign; before it joins."""

    node_id: PublicId
    measurement: PublicId


class Endorse(_Message, frozen=True, tag="endorse"):
    """Say what vendors say of the platform that gave this evidence."""

    request: Request
    platform: PublicId
    evidence: Annotated[bytes, Meta(max_length=limits.ENDORSEMENTS_BYTES_MAX)]


class Dial(_Message, frozen=True, tag="dial"):
    """Connect to another node, and to the *dialled* listener, whose stream begins with ``dial`` as eight bytes."""

    dial: Request
    address: Name


class Append(_Message, frozen=True, tag="append"):
    """Persist these entries; the first has seqno ``first``."""

    first: Seqno
    entries: Annotated[list[EntryBytes], Meta(max_length=limits.READ_ENTRIES_MAX)]


class Read(_Message, frozen=True, tag="read"):
    """Send the entries ``first`` to ``last``."""

    request: Request
    first: Seqno
    last: Seqno


class Truncate(_Message, frozen=True, tag="truncate"):
    """Remove every entry above ``seqno``."""

    seqno: Seqno


class WriteIndex(_Message, frozen=True, tag="write_index"):
    """Keep these sealed blocks of a run, until :class:`DropIndex` or the end of this process."""

    run: Request
    first: Request
    blocks: Annotated[list[IndexBlockBytes], Meta(max_length=limits.INDEX_BLOCKS_MAX)]


class ReadIndex(_Message, frozen=True, tag="read_index"):
    """Send one block of a run."""

    request: Request
    run: Request
    block: Request


class DropIndex(_Message, frozen=True, tag="drop_index"):
    """Nobody needs this run any more."""

    run: Request


class WriteSnapshot(_Message, frozen=True, tag="write_snapshot"):
    """Keep this sealed part of the snapshot at ``seqno``, until :class:`KeepSnapshot` names another."""

    request: Request
    seqno: Seqno
    number: PartNumber
    part: SnapshotPartBytes


class ReadSnapshot(_Message, frozen=True, tag="read_snapshot"):
    """Send a part of the snapshot at ``seqno``."""

    request: Request
    seqno: Seqno
    number: PartNumber


class KeepSnapshot(_Message, frozen=True, tag="keep_snapshot"):
    """Forget every snapshot but the one at ``seqno``; 0: every one."""

    seqno: Seqno


class ExternalOpen(_Message, frozen=True, tag="external_open"):
    """Begin a session with the external processor ``name``."""

    session: Request
    name: Name


class ExternalSend(_Message, frozen=True, tag="external_send"):
    """Pass ``body`` to the processor of a session."""

    session: Request
    body: Annotated[bytes, Meta(max_length=limits.EXTERNAL_BYTES_MAX)]


class ExternalClose(_Message, frozen=True, tag="external_close"):
    """Nobody needs this session any more."""

    session: Request


class Log(_Message, frozen=True, tag="log"):
    """A line for the host's log."""

    code: Code
    numbers: Annotated[dict[Code, int], Meta(max_length=16)]
    ids: Annotated[dict[Code, PublicId], Meta(max_length=16)]


class Metrics(_Message, frozen=True, tag="metrics"):
    """Numbers for the host's monitoring, after every :class:`Tick`."""

    numbers: Annotated[dict[Code, int], Meta(max_length=64)]


class Exit(_Message, frozen=True, tag="exit"):
    """The last message: why the enclave ends."""

    code: Code
    numbers: Annotated[dict[Code, int], Meta(max_length=16)]
    ids: Annotated[dict[Code, PublicId], Meta(max_length=16)]


ToEnclave = (
    Start
    | Appended
    | Entries
    | Truncated
    | IndexBlock
    | SnapshotWritten
    | SnapshotPart
    | Tick
    | ExternalReceived
    | ExternalClosed
    | OwnerStatement
    | Endorsed
    | DialFailed
    | Stop
)
ToHost = (
    Ready
    | Identity
    | Endorse
    | Dial
    | Append
    | Read
    | Truncate
    | WriteIndex
    | ReadIndex
    | DropIndex
    | WriteSnapshot
    | ReadSnapshot
    | KeepSnapshot
    | ExternalOpen
    | ExternalSend
    | ExternalClose
    | Log
    | Metrics
    | Exit
)

_encode = msgspec.msgpack.Encoder().encode
_TO_ENCLAVE: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToEnclave)
_TO_HOST: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToHost)


def encode(message: ToEnclave | ToHost) -> bytes:
    """Bytes of one message, without its frame."""
    return _encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise HostLiedError("a message breaks its type", code="channel.invalid_message") from error
    # Text that is not UTF-8 has an exception of its own.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HostLiedError("a message cannot be decoded", code="channel.malformed_message") from error


def decode_to_enclave(data: bytes) -> ToEnclave:
    """Decode what the host sent.

    Raises:
        HostLiedError: no message (``channel.malformed_message``) or an invalid one (``channel.invalid_message``).
    """
    message: ToEnclave = _decode(_TO_ENCLAVE, data)
    return message


def decode_to_host(data: bytes) -> ToHost:
    """Decode what the enclave sent; raises as :func:`decode_to_enclave`."""
    message: ToHost = _decode(_TO_HOST, data)
    return message
