"""Who asks: what a connection proved, and what the configuration of this moment makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

_NONE: frozenset[bytes] = frozenset()


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
    #: By adapter, what is proven to be the actor's in that protocol's own form: accounts, keys, signers, certificates.
    identities: Mapping[str, frozenset[bytes]] = field(default_factory=dict, hash=False)
    #: INSECURE, sandbox only: every identity counts as the actor's.
    any_account: bool = False
    #: Sees everything.
    auditor: bool = False
    #: DER of the certificate that the connection showed; for the framework, which has other nodes check it too.
    certificate: bytes = field(default=b"", repr=False)

    def identities_of(self, adapter: str) -> frozenset[bytes]:
        """What is proven for this caller of one protocol."""
        return self.identities.get(adapter, _NONE)

    def owns(self, adapter: str, identity: bytes) -> bool:
        """Whether ``identity`` is proven for this caller."""
        return self.any_account or identity in self.identities_of(adapter)
