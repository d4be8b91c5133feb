"""Who asks: what a connection proved, and what the configuration of this moment makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class CallerKind(Enum):
    """What the connection proved."""

    ANONYMOUS = "anonymous"
    PARTICIPANT = "participant"
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the enclave found out from the connection and the current configuration."""

    kind: CallerKind = CallerKind.ANONYMOUS
    #: Hex fingerprint of the actor's certificate; empty when anonymous.
    actor: str = ""
    #: Accounts proven to be the actor's, in the protocol's own form.
    accounts: frozenset[bytes] = frozenset()
    #: INSECURE, sandbox only: every account counts as the actor's.
    any_account: bool = False
    #: Sees everything.
    auditor: bool = False
    #: DER of the certificate that the connection showed; for the framework, which has other nodes check it too.
    certificate: bytes = field(default=b"", repr=False)

    def owns(self, account: bytes) -> bool:
        """Whether ``account`` is proven for this caller."""
        return self.any_account or account in self.accounts
