"""Signature entries: who signs, with which certificate, at which time, over what."""

from __future__ import annotations

import cbor2

from coco import limits
from coco._native import MerkleTree
from coco.audit import certificates
from coco.audit.rows import Written, illegal
from coco.audit.state import State, key_of
from coco.configuration import nodes
from coco.crypto import cose
from coco.ledger import tables
from coco.ledger.signature import CWT_CLAIMS, ISSUED_AT, VDS, VDS_CCF_LEDGER, RootSignature, parse_rows, verify_root
from coco.ledger.transaction_id import TransactionId


def signature(state: State, written: Written) -> RootSignature:
    """A primary signs everything before this entry.

    Raises:
        CocoError: it signs something else, or it may not.
    """
    seqno = written.seqno
    rows = written.take(tables.SIGNATURES), written.take(tables.COSE_SIGNATURES)
    found, position = parse_rows(*rows), TransactionId(written.view, seqno)
    service = certificates.parse(str(state.service["cert"]))
    verify_root(found, root=state.tree.root(seqno), position=position, service_key=key_of(service))
    if (found.signatures_row(), found.cose_row()) != rows:
        raise illegal("a signature is not as a node writes it", "signature")
    _check_headers(state, found)
    _check_signer(state, written, found)
    if written.take(tables.TREE) != _tree_before(state.tree, seqno):
        raise illegal("the tree beside a signature is another one", "signature")
    return found


def _tree_before(tree: MerkleTree, seqno: int) -> bytes:
    """The tree without an entry, which may be in it already, and without what follows."""
    later = [tree.leaf(at) for at in range(seqno, len(tree))]
    tree.truncate(seqno)
    try:
        return tree.serialise()
    finally:
        for leaf in later:
            tree.append(leaf or b"")


def _check_headers(state: State, found: RootSignature) -> None:
    message = cose.parse(cose.encode(found.protected, found.service_signature, None))
    expected = {
        cose.ALGORITHM: cose.ES384,
        cose.KEY_ID: state.service_name.encode(),
        VDS: VDS_CCF_LEDGER,
        CWT_CLAIMS: {ISSUED_AT: found.issued_s},
        "ccf.v1": {"txid": str(found.position)},
    }
    if message.headers != expected or cbor2.dumps(expected) != found.protected:
        raise illegal("a signature says something else of itself", "signature")


def _check_signer(state: State, written: Written, found: RootSignature) -> None:
    row = state.node(found.node_id)
    leaving = row.get("status") == nodes.RETIRED and not row.get("retired_committed")
    if row.get("status") != nodes.TRUSTED and not leaving:
        raise illegal("a node signed that is not trusted here", "signer")
    if found.node_certificate.encode() != state.rows.get(tables.NODE_CERTIFICATES, found.node_id.encode()):
        raise illegal("a node signed with another certificate than it has here", "signer")
    time_s = found.issued_s
    if not certificates.counts_at(certificates.parse(found.node_certificate), time_s, row):
        raise illegal("a node signed with a certificate that did not count then", "signer")
    if time_s < state.time_s or time_s < state.issued_s - limits.AUDIT_SKEW_SECONDS:
        raise illegal("a signature is earlier than what it signs", "signature")
    if state.signer and written.view == state.view_at(written.seqno) and found.node_id != state.signer:
        raise illegal("two nodes signed in one view", "signer")
    committed = found.committed
    there = committed.seqno < written.seqno and state.view_at(committed.seqno) == committed.view
    if not there and committed != TransactionId(0, 0):
        raise illegal("a signature calls a place committed that there is not", "signature")
