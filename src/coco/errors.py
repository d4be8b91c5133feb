"""Every exception that Coco raises on purpose.

Two questions decide the class: who must act, and which code they see. ``code`` is part of the public contract: it is
what clients, scripts and the documentation refer to. Nothing that comes from the network may surface as a bare
``ValueError`` or a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class CocoError(Exception):
    """Base of all expected failures; never raised itself."""

    code: str = "coco.error"
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        if type(self) is CocoError:
            raise TypeError("raise a subclass of CocoError")
        super().__init__(message)
        if code is not None:
            self.code = code
        self.hint = hint
        #: Facts that may leave the enclave with the code, while the text stays inside (H1).
        self.numbers = dict(numbers or {})

    def diagnostics(self) -> str:
        """One paragraph for a person: what happened and what to do next."""
        return f"{self} [{self.code}]" + (f"\n  try: {self.hint}" if self.hint else "")


class RequestError(CocoError):
    """The caller sent something that cannot be served; the caller must change it."""

    code = "request.invalid"
    http_status = 400


class BodyTooLargeError(RequestError):
    """The caller sent more than is taken there."""

    code = "http.body_too_large"
    http_status = 413


class AccessError(CocoError):
    """The caller may not do or see this."""

    code = "access.denied"
    http_status = 403


class NotFoundError(CocoError):
    """What the caller asks for is not here."""

    code = "request.not_found"
    http_status = 404


class BusyError(CocoError):
    """The node is full or not ready; the caller may try again."""

    code = "node.busy"
    http_status = 503


class OverBudgetError(BusyError):
    """The caller has spent what it may cost for now.

    Attributes:
        budget: its name, such as ``anonymous.work``.
        retry_after_s: when to come back; 0 when that would not help.
    """

    code = "budget.spent"
    http_status = 429

    def __init__(
        self, message: str, *, budget: str, retry_after_s: float = 0.0, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.budget, self.retry_after_s = budget, retry_after_s


class ChildError(CocoError):
    """A child process of an adapter gave no answer; it is replaced, and the caller may try again."""

    code = "child.gone"
    http_status = 503


class StoreError(CocoError):
    """The store refused an operation."""

    code = "store.error"


class LedgerError(CocoError):
    """Ledger bytes are damaged, cut, or not what they claim to be; the operator must act."""

    code = "ledger.error"


class AttestationError(CocoError):
    """Evidence or identity does not prove what it should; nothing was sent to the peer."""

    code = "attestation.refused"
    http_status = 403


class HostLiedError(CocoError):
    """The host broke the channel's protocol; the enclave ends."""

    code = "channel.host_lied"


class ConsensusError(CocoError):
    """The node is not, or no longer, in the place to do this; or a peer's message is none."""

    code = "consensus.refused"
    http_status = 503


class GovernanceError(CocoError):
    """A proposal, a vote or the rules of a constitution cannot be taken as they are."""

    http_status = 400


class LockdownError(CocoError):
    """The enclave process cannot be closed off as it must be; it does not start."""

    code = "lockdown.failed"


class ConfigurationError(CocoError):
    """A genesis, setting or file of the operator is wrong."""

    code = "configuration.invalid"
    http_status = 400


class HostError(CocoError):
    """The host side cannot do its work: disk, port or child process."""

    code = "host.error"


class FaultError(CocoError):
    """Coco itself is at fault: what nobody foresaw."""

    code = "cli.fault"


class NativeError(CocoError):
    """The extension failed inside; nothing was changed."""

    code = "native.error"


_BY_PREFIX: dict[str, type[CocoError]] = {
    "store": StoreError,
    "ledger": LedgerError,
    "host": HostError,
    "ethereum": RequestError,
    "configuration": ConfigurationError,
    "consensus": ConsensusError,
    "platform": NativeError,
    "native": NativeError,
}


def native_error(code: str, text: str) -> CocoError:
    """Return the exception for an error of the extension (called from there)."""
    return _BY_PREFIX.get(code.partition(".")[0], NativeError)(text, code=code)
