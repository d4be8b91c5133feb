"""Windows VBS enclaves: reports as documented (``ntenclv.h``), never seen from a real machine here.

Evidence: a package: header, signed statement (report and modules), signature (RSA-PSS with SHA-256). Endorsements:
``key``, the PEM of the key under which the secure kernel signs. Which keys are trusted is policy: the operator learns
one from a measured boot. The hypervisor's owner is trusted, so this ranks below hardware that encrypts memory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from coco.attestation.verified import VBS, Verified, refuse

_HEADER = struct.Struct("<6I")
_REPORT = struct.Struct("<2I64s32s32s32s16s16s6I")
_MODULE = struct.Struct("<2I32s32s16s16sI")
_RSA_PSS_SHA256, _VERSION, _MODULE_TYPE = 1, 1, 1
#: FULL_DEBUG_ENABLED, DYNAMIC_DEBUG_ENABLED, DYNAMIC_DEBUG_ACTIVE.
DEBUG_FLAGS: Final = 0x7
#: A key has no dates.
_FOR_EVER_S = (1 << 53) - 1


def verify(package: bytes, endorsements: Mapping[str, str], *, now_s: int) -> Verified:
    """Verify a report under its key; whether the key is trusted, a policy says by the claim ``key``.

    The measurement is the unique id, the signer the author id.

    Args:
        package: as the secure kernel made it.
        endorsements: ``key``: PEM.
        now_s: the time; keys of secure kernels have no dates.

    Raises:
        AttestationError: ``attestation.malformed``, ``.unsupported``, ``.signature``.
    """
    statement, signature = _unpacked(package)
    try:
        key = load_pem_public_key(endorsements.get("key", "").encode())
    except (ValueError, TypeError) as error:
        raise refuse("the key of the secure kernel cannot be read", "malformed") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise refuse("a secure kernel signs with RSA", "unsupported")
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
    try:
        key.verify(signature, statement, pss, hashes.SHA256())
    except InvalidSignature as error:
        raise refuse("the secure kernel did not sign this report", "signature") from error
    if len(statement) < _REPORT.size:
        raise refuse("the report is cut", "malformed")
    size, version, data, owner, unique, author, family, image, *numbers = _REPORT.unpack_from(statement)
    svn, kernel_svn, platform_svn, flags, signing_level, kind = numbers
    if version != _VERSION or not _REPORT.size <= size <= len(statement):
        raise refuse("the report is of a version that is not known", "unsupported")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Verified(
        platform=VBS,
        measurement=unique.hex(),
        signer=author.hex(),
        report_data=data,
        debug=bool(flags & DEBUG_FLAGS),
        tcb_status="",
        valid_from_s=0,
        valid_until_s=_FOR_EVER_S,
        claims={
            "key": sha256(spki).hexdigest(),
            "owner_id": owner.hex(),
            "family_id": family.hex(),
            "image_id": image.hex(),
            "enclave_svn": svn,
            "secure_kernel_svn": kernel_svn,
            "platform_svn": platform_svn,
            "flags": flags,
            "signing_level": signing_level,
            "enclave_type": kind,
            "modules": _modules(statement[size:]),
        },
    )


def _unpacked(package: bytes) -> tuple[bytes, bytes]:
    if len(package) < _HEADER.size:
        raise refuse("not a report of a secure kernel", "malformed")
    size, version, scheme, statement_size, signature_size, reserved = _HEADER.unpack_from(package)
    if version != _VERSION or scheme != _RSA_PSS_SHA256:
        raise refuse("the report has a signature that is not known", "unsupported")
    if size != len(package) or _HEADER.size + statement_size + signature_size != size or reserved:
        raise refuse("the parts of the report do not fill it", "malformed")
    at = _HEADER.size + statement_size
    return package[_HEADER.size : at], package[at:]


def _modules(data: bytes) -> list[dict[str, Any]]:
    """Every module that the enclave has loaded."""
    found, at = [], 0
    while at < len(data):
        if len(data) - at < _MODULE.size:
            raise refuse("a module of the report is cut", "malformed")
        kind, size, unique, author, family, image, svn = _MODULE.unpack_from(data, at)
        if kind != _MODULE_TYPE or size < _MODULE.size or at + size > len(data):
            raise refuse("a module of the report has no known form", "malformed")
        text = data[at + _MODULE.size : at + size]
        name = "".join(map(chr, struct.unpack(f"<{len(text) // 2}H", text[: len(text) & ~1]))).rstrip("\0")
        found.append(
            {
                "name": name,
                "unique_id": unique.hex(),
                "author_id": author.hex(),
                "family_id": family.hex(),
                "image_id": image.hex(),
                "svn": svn,
            }
        )
        at += size
    return found
