"""Verify chunk files, and receipts beside them, with the independent ``ccf`` package; a fresh process for each ledger.

python verify_with_ccf.py CHUNKS [RECEIPT.json SERVICE.pem]
python verify_with_ccf.py --each FOLDER   prints how many of the ledgers, each in a folder of FOLDER, it accepts
"""

import base64
import contextlib
import io
import json
import sys
from hashlib import sha256
from pathlib import Path

import ccf.cose
import ccf.ledger
import ccf.receipt
from cryptography import x509


def verify_ledger(directory: str) -> None:
    validator, count = ccf.ledger.LedgerValidator(accept_deprecated_entry_types=False), 0
    for chunk in ccf.ledger.Ledger([directory]):
        for transaction in chunk:
            validator.add_transaction(transaction)
            count += 1
    assert count > 0 and validator.signature_count > 0
    print(f"verified {count} entries, {validator.signature_count} signatures, last {validator.last_verified_txid()}")


def verify_receipt(path: str, service: str) -> None:
    receipt = json.loads(Path(path).read_text())
    parts = receipt["leaf_components"]
    claims = bytes.fromhex(parts["claims_digest"])
    leaf = sha256(
        bytes.fromhex(parts["write_set_digest"]) + sha256(parts["commit_evidence"].encode()).digest() + claims
    ).hexdigest()
    node = x509.load_pem_x509_certificate(receipt["cert"].encode())
    authority = x509.load_pem_x509_certificate(Path(service).read_bytes())
    ccf.receipt.verify(ccf.receipt.root(leaf, receipt["proof"]), receipt["signature"], node)
    ccf.receipt.check_endorsements(node, authority, [])
    ccf.receipt.check_cert_chain(node, authority, [])
    ccf.cose.verify_receipt(base64.b64decode(receipt["cose"]), authority.public_key(), claims)
    print("verified receipt")


def accepted(folder: Path) -> int:
    """How many ledgers pass; whatever is raised is a refusal."""
    count = 0
    for directory in sorted(folder.iterdir()):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                verify_ledger(str(directory))
            count += 1
        except Exception:
            continue
    return count


if sys.argv[1] == "--each":
    print(accepted(Path(sys.argv[2])))
    sys.exit()
verify_ledger(sys.argv[1])
if len(sys.argv) > 2:
    verify_receipt(sys.argv[2], sys.argv[3])
