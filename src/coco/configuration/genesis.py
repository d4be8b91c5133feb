"""The genesis document: who founds a network, under which rules, with which ledger protocols.

The document is data of the operator. Whatever is wrong in it raises :class:`ConfigurationError` with the place named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from cryptography import x509
from msgspec import Meta

from coco import addresses, limits
from coco.attestation.policy import parse_rules
from coco.configuration import participants, settings, supermajority
from coco.configuration.share_holders import OWNER
from coco.crypto import chains
from coco.errors import ConfigurationError, GovernanceError
from coco.ledger import tables
from coco.ledger.statements import fingerprint

_Pem = Annotated[str, Meta(max_length=16 * 1024)]


class Member(msgspec.Struct, forbid_unknown_fields=True):
    """A member: governs, and holds a recovery share if it has an encryption key."""

    cert: _Pem
    encryption_public_key: _Pem = ""
    #: ``Participant`` (a share) or ``Owner`` (recovers alone); counts only with an encryption key.
    recovery_role: Literal["Participant", "Owner"] = "Participant"
    member_data: dict[str, Any] = {}


class Participant(msgspec.Struct, forbid_unknown_fields=True):
    """A participant: transacts. A certificate that may issue stands for an organisation."""

    cert: _Pem
    user_data: dict[str, Any] = {}


class Operator(msgspec.Struct, forbid_unknown_fields=True):
    """An operator: signs for nodes at listed addresses, so that a restart needs no person."""

    cert: _Pem
    #: ``host`` or ``host:port``.
    addresses: Annotated[list[str], Meta(max_length=255)]


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """Numbers of the network."""

    block_interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 50
    signature_interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 10
    #: How far the clock of a primary's host may be ahead of the median of the voters' hosts before another leads.
    time_bound_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 10_000
    #: Ledger entries after which a snapshot is due.
    snapshot_interval_entries: Annotated[int, Meta(ge=10)] = 10_000
    #: Rows of logs of which memory keeps the place, before those go to the host as a sealed run.
    index_rows_max: Annotated[int, Meta(ge=16)] = limits.INDEX_ROWS_COLD_MAX
    #: The first values of what members vote on later (``settings.py``).
    voted: dict[str, Any] = {}


class Genesis(msgspec.Struct, forbid_unknown_fields=True):
    """The whole document."""

    network: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")]
    members: Annotated[list[Member], Meta(min_length=1, max_length=255)]
    participants: Annotated[list[Participant], Meta(max_length=10_000)] = []
    operators: Annotated[list[Operator], Meta(max_length=255)] = []
    recovery_threshold: Annotated[int, Meta(ge=1, le=254)] = 1
    constitution: Annotated[str, Meta(max_length=1024 * 1024)] = ""
    settings: Settings = msgspec.field(default_factory=Settings)
    #: Rules of each platform that nodes may run on (TEE manifest), as ``set_tee_policy`` takes them.
    platforms: dict[str, dict[str, Any]] = {}
    #: Settings of each ledger protocol, by adapter name.
    adapters: dict[str, dict[str, Any]] = {}
    #: Fixed here for ever: no action changes it (J10).
    insecure_virtual: bool = False
    #: Refuses everything that only a sandbox may have.
    production: bool = True
    #: How many of the active members replace the rules whatever these say; fixed here for ever (``supermajority.py``).
    rules_supermajority: str = supermajority.DEFAULT
    #: Participants may come only once members have voted for it (``transition_service_to_open``).
    opens_by_vote: bool = False

    @classmethod
    def parse(cls, document: bytes) -> Genesis:
        """Read and check a document.

        Raises:
            ConfigurationError: ``configuration.genesis``.
        """
        try:
            genesis = msgspec.json.decode(document, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"the genesis is wrong: {error}", code="configuration.genesis") from error
        genesis.check()
        return genesis

    def check(self) -> None:
        """Rules between fields."""
        holders = [member for member in self.members if member.encryption_public_key]
        owned = any(member.recovery_role == OWNER for member in holders)
        if len(holders) < self.recovery_threshold and not owned:
            raise ConfigurationError(
                f"{self.recovery_threshold} shares are needed to recover, {len(holders)} members have a key for them",
                code="configuration.genesis",
            )
        if self.production and self.insecure_virtual:
            raise ConfigurationError(
                "a production network does not accept platform virtual", code="configuration.insecure_virtual"
            )
        if self.opens_by_vote and not self.constitution:
            raise ConfigurationError("nobody could open a network without rules", code="configuration.genesis")
        supermajority.fraction(self.rules_supermajority)
        try:
            settings.check(self.settings.voted)
        except GovernanceError as error:
            raise ConfigurationError(f"the genesis is wrong: {error}", code="configuration.genesis") from error
        for platform, rules in self.platforms.items():
            parse_rules(platform, rules)
        kinds: list[Sequence[Member | Participant | Operator]] = [self.members, self.participants, self.operators]
        for actors in kinds:
            seen: set[bytes] = set()
            for actor in actors:
                self._check_alone(actor.cert, seen)
        for participant in self.participants:
            participants.check_alone(participant.user_data, production=self.production)

    def check_founding(self) -> None:
        """What is asked of a network that begins; older ones go on as they are.

        Raises:
            ConfigurationError: an operator's address is none (``configuration.bad_address``), or a participant's
                account (``configuration.bad_accounts``).
        """
        for participant in self.participants:
            participants.check(participant.user_data, production=self.production)
        for operator in self.operators:
            for address in operator.addresses:
                addresses.check(address)

    @staticmethod
    def _check_alone(pem: str, seen: set[bytes]) -> None:
        """As votes keep it later (G4); ``seen`` has each key and each organisation's name."""
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            marks = chains.marks(certificate)
        except ValueError as error:
            raise ConfigurationError("an actor's certificate is no PEM", code="configuration.genesis") from error
        if not seen.isdisjoint(marks):
            raise ConfigurationError(
                f"{fingerprint(certificate)} has the key or the name of another actor", code="configuration.genesis"
            )
        seen.update(marks)

    def rows(self, document: bytes) -> list[tuple[str, bytes, bytes]]:
        """The first rows of the administrative ledger."""

        rows = [
            (tables.GENESIS, tables.SINGLETON, document),
            (tables.CONSTITUTION, tables.SINGLETON, tables.row(self.constitution)),
            (
                tables.SERVICE_CONFIG,
                tables.SINGLETON,
                tables.row(settings.complete({**self.settings.voted, "recovery_threshold": self.recovery_threshold})),
            ),
        ]
        for platform, rules in self.platforms.items():
            rows.append((tables.TEE_POLICY, platform.encode(), tables.row(rules)))
        for member in self.members:
            key = fingerprint(x509.load_pem_x509_certificate(member.cert.encode())).encode()
            rows.append((tables.MEMBERS_CERTS, key, member.cert.encode()))
            info: dict[str, Any] = {"status": "Active", "member_data": member.member_data}
            if member.encryption_public_key and member.recovery_role == OWNER:
                info["recovery_role"] = OWNER
            rows.append((tables.MEMBERS_INFO, key, tables.row(info)))
            if member.encryption_public_key:
                rows.append((tables.MEMBERS_ENCRYPTION, key, member.encryption_public_key.encode()))
        for participant in self.participants:
            key = fingerprint(x509.load_pem_x509_certificate(participant.cert.encode())).encode()
            rows.append((tables.USERS_CERTS, key, participant.cert.encode()))
            rows.append((tables.USERS_INFO, key, tables.row({"user_data": participant.user_data})))
        for operator in self.operators:
            key = fingerprint(x509.load_pem_x509_certificate(operator.cert.encode())).encode()
            rows.append((tables.OPERATORS, key, tables.row({"cert": operator.cert, "addresses": operator.addresses})))
        return rows
