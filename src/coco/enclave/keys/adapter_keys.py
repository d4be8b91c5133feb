"""Keys that adapters sign with: made here for the service, the same at every node, and never in an adapter's hands.

Rules:

* A key is made in the entry that begins its adapter, and goes with that entry if it is rolled back. Whoever has the
  ledger and its secrets has the key: a joiner, a restart, a recovery.
* Its private part rests under a key derived from the ledger secret of an epoch, in a private table: who sees a table,
  such as an adapter, or a write set, sees ciphertext; the entry itself is sealed besides.
* The service certifies it. Once the service has another key (J9), the primary makes a fresh one, under the secret of
  the epoch that began with it: who was removed knows neither. One that its adapter wants to stay, and every one after a
  recovery, is certified again; so is one whose certificate ends soon. Former certificates are kept.
* What signs is what is committed: a signature never names a key that may yet be gone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Protocol, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from coco import limits
from coco._native import LedgerSecret, SnapshotCipher, wipe
from coco.configuration.reads import Gets, Reads
from coco.crypto import cose
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import PublicKey, ServiceIdentity
from coco.enclave.store import Journal
from coco.errors import BusyError, ConfigurationError, NotFoundError
from coco.ledger import tables
from coco.ledger.statements import spki_of

Row = tuple[str, bytes, bytes]
PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SALT_BYTES: Final = 32
_SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
#: A certificate is renewed when this share of its time is left.
_LEFT: Final = 1 / 3
_MAKE: Final[Mapping[str, Callable[[], PrivateKey]]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


class Declared(Protocol):
    """A key as an adapter's manifest declares it (``adapters/contract/declared.py``)."""

    @property
    def name(self) -> str:
        """Lower-case letters, digits, ``-`` and ``_``."""

    @property
    def algorithm(self) -> str:
        """``ed25519``, ``secp256k1`` or ``p384``."""

    @property
    def stays(self) -> bool:
        """Whether the key stays when the service's changes."""


def check(adapter: str, keys: Iterable[Declared]) -> None:
    """Whether there can be such keys.

    Raises:
        ConfigurationError: there cannot (``configuration.adapter_key``).
    """
    names = set[str]()
    for key in keys:
        if _NAME.fullmatch(key.name) is None or key.name in names or key.algorithm not in _MAKE:
            raise ConfigurationError(
                f"adapter {adapter} cannot have a key {key.name[:32]!r} of {key.algorithm[:32]!r}",
                code="configuration.adapter_key",
            )
        names.add(key.name)


class AdapterKeys:
    """The keys of every adapter of one node.

    Args:
        journal: has the secrets that they rest under.
        service: certifies them.
        committed: the state that signatures go by; None while this node has none.
        run: runs what takes long on a thread.
    """

    def __init__(
        self,
        journal: Journal,
        service: ServiceIdentity,
        committed: Callable[[], Gets | None],
        run: Callable[..., Awaitable[Any]],
    ) -> None:
        self._journal, self._service = journal, service
        self._committed, self._run = committed, run
        #: What was opened last, with the row that it was opened from.
        self._opened: dict[bytes, tuple[bytes, PrivateKey]] = {}

    # --- what adapters are given ---

    async def sign(self, adapter: str, name: str, data: bytes) -> bytes:
        """A signature over ``data``: Ed25519 as it is; ECDSA as r ‖ s of the curve's length.

        secp256k1 signs the SHA-256, with the lower s; P-384 the SHA-384.

        Raises:
            NotFoundError: the adapter has no such key (``key.unknown``).
            BusyError: this node knows nothing committed yet (``key.not_ready``).
        """
        signature: bytes = await self._run(_sign, self._private(adapter, name), data)
        return signature

    def certificates(self, adapter: str, name: str) -> list[str]:
        """PEM of every certificate of a key, the newest first; raises as :meth:`sign`."""
        certificates: list[str] = json.loads(self._row(adapter, name))["certificates"]
        return certificates

    def _row(self, adapter: str, name: str) -> bytes:
        view = self._committed()
        if view is None:
            raise BusyError("this node knows of no keys yet", code="key.not_ready")
        row = view.get(tables.ADAPTER_KEYS, _place(adapter, name))
        if row is None:
            raise NotFoundError(f"there is no key {name[:32]} of {adapter[:32]}", code="key.unknown")
        return row

    def _private(self, adapter: str, name: str) -> PrivateKey:
        place, row = _place(adapter, name), self._row(adapter, name)
        known, key = self._opened.get(place, (b"", None))
        if key is None or known != row:
            key = self._open(json.loads(row))
            self._opened[place] = row, key
        return key

    def _open(self, document: dict[str, Any]) -> PrivateKey:
        secret = self._journal.secret_at(int(document["first_seqno"]))
        plain = _cipher(secret, bytes.fromhex(document["salt"])).open(bytes.fromhex(document["sealed"]))
        key = load_der_private_key(plain, None)
        wipe(plain)
        assert isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey), "no other is ever made"
        return key

    # --- rows ---

    def made(self, adapter: str, keys: Iterable[Declared], view: Gets, now_ms: int) -> list[Row]:
        """Fresh keys of an adapter that begins, for the entry that says so."""
        return [self._made(_place(adapter, key.name), key.algorithm, key.stays, view, now_ms) for key in keys]

    def missing(self, adapter: str, keys: Iterable[Declared], view: Gets, now_ms: int) -> list[Row]:
        """Fresh keys that an adapter which runs has come to want."""
        wanted = [key for key in keys if view.get(tables.ADAPTER_KEYS, _place(adapter, key.name)) is None]
        return self.made(adapter, wanted, view, now_ms)

    def due(self, view: Reads, now_ms: int) -> list[Row]:
        """What follows from another key of the service, and from certificates that end soon.

        Args:
            view: the newest state, all of it committed.
            now_ms: this moment, since the Unix epoch.
        """
        return [
            row
            for place, value in view.scan(tables.ADAPTER_KEYS)
            if (row := self._due(place, json.loads(value), view, now_ms)) is not None
        ]

    def _due(self, place: bytes, document: dict[str, Any], view: Gets, now_ms: int) -> Row | None:
        if document["service"] == cose.key_id(self._service.key.public_key()):
            begin_s, end_s = document["valid_s"]
            left_s = end_s - now_ms // 1000
            return self._certified(place, document, view, now_ms) if left_s < (end_s - begin_s) * _LEFT else None
        info = _service_info(view)
        # Nobody but the service of the former life had the key, and all of that one is lost.
        recovered = int(info.get("recovery_count", 0)) > document["life"]
        if document["stays"] or (recovered and _previous(info) == document["service"]):
            return self._certified(place, document, view, now_ms)
        return self._made(place, document["algorithm"], False, view, now_ms, document["certificates"])

    def _made(
        self, place: bytes, algorithm: str, stays: bool, view: Gets, now_ms: int, former: Sequence[str] = ()
    ) -> Row:
        first, secret = self._journal.current_secret
        key, salt = _MAKE[algorithm](), os.urandom(_SALT_BYTES)
        plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        sealed = _cipher(secret, salt).seal(plain)
        wipe(plain)
        document = {
            "algorithm": algorithm,
            "stays": stays,
            "first_seqno": first,
            "salt": salt.hex(),
            "sealed": sealed.hex(),
            "certificates": list(former),
        }
        return self._with(place, document, key.public_key(), view, now_ms)

    def _certified(self, place: bytes, document: dict[str, Any], view: Gets, now_ms: int) -> Row:
        public = x509.load_pem_x509_certificate(document["certificates"][0].encode()).public_key()
        assert isinstance(public, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey), "no other is ever certified"
        return self._with(place, document, public, view, now_ms)

    def _with(self, place: bytes, document: dict[str, Any], public: PublicKey, view: Gets, now_ms: int) -> Row:
        certificate = self._service.certify(public, place.decode(), now_ms)
        valid = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        row = {
            **document,
            "certificates": [pem(certificate), *document["certificates"]][: limits.KEY_CERTIFICATES_MAX],
            "valid_s": [int(moment.timestamp()) for moment in valid],
            "service": cose.key_id(self._service.key.public_key()),
            "life": int(_service_info(view).get("recovery_count", 0)),
        }
        return tables.ADAPTER_KEYS, place, tables.row(row)


def _service_info(view: Gets) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(view.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}")
    return info


def _previous(info: dict[str, Any]) -> str:
    """Id of the key that the service had before; empty: this is its first."""
    previous = info.get("previous_service_identity")
    return sha256(spki_of(previous)).hexdigest() if previous else ""


def shown(view: Reads) -> dict[str, dict[str, Any]]:
    """What everybody may know of the keys in a state: algorithm and certificates, by ``adapter/name``."""
    return {
        place.decode(): {
            name: value for name, value in json.loads(row).items() if name in ("algorithm", "certificates")
        }
        for place, row in view.scan(tables.ADAPTER_KEYS)
    }


def _place(adapter: str, name: str) -> bytes:
    return f"{adapter}/{name}".encode()


def _cipher(secret: LedgerSecret, salt: bytes) -> SnapshotCipher:
    """Seals or opens one text under a key of its own: the salt is never used again."""
    return secret.snapshot_cipher(salt, 0)


def _sign(key: PrivateKey, data: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    koblitz = isinstance(key.curve, ec.SECP256K1)
    signature = key.sign(data, ec.ECDSA(hashes.SHA256() if koblitz else hashes.SHA384()))
    r, s = decode_dss_signature(signature)
    if koblitz:
        s = min(s, _SECP256K1_ORDER - s)
    size = (key.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")
