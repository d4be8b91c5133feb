"""Names of the public tables. ``ccf`` where that format has one, ``coco`` where it has none."""

from __future__ import annotations

import json
from typing import Final

#: Key of the row of a one-row table.
SINGLETON: Final = bytes(8)

SERVICE_INFO: Final = "public:ccf.gov.service.info"
SERVICE_CONFIG: Final = "public:ccf.gov.service.config"
CONSTITUTION: Final = "public:ccf.gov.constitution"
NODES_INFO: Final = "public:ccf.gov.nodes.info"
NODE_CERTIFICATES: Final = "public:ccf.gov.nodes.endorsed_certificates"
NODE_MEASUREMENTS: Final = "public:ccf.gov.nodes.virtual.measurements"
NODE_CODE_IDS: Final = "public:ccf.gov.nodes.code_ids"
NODE_SNP_MEASUREMENTS: Final = "public:ccf.gov.nodes.snp.measurements"
NODE_SNP_HOST_DATA: Final = "public:ccf.gov.nodes.snp.host_data"
NODE_SNP_UVM_ENDORSEMENTS: Final = "public:ccf.gov.nodes.snp.uvm_endorsements"
NODE_SNP_TCB_VERSIONS: Final = "public:ccf.gov.nodes.snp.tcb_versions"
#: Launch measurements of TDX guests; the open format has no such list.
NODE_TDX_MEASUREMENTS: Final = "public:coco.gov.nodes.tdx.measurements"
#: Allowed code of other platforms, ``platform:measurement``; the open format has no such lists.
NODE_OTHER_MEASUREMENTS: Final = "public:coco.gov.nodes.measurements"
#: Rules of each platform of the TEE manifest.
TEE_POLICY: Final = "public:coco.gov.nodes.tee_policy"
#: Adapters that members voted in, by name: their genesis, and whether they run.
ADAPTERS: Final = "public:coco.gov.adapters"
#: Leaf certificates that stand for nobody, though an organisation issued them (G4).
DENIED_CERTIFICATES: Final = "public:coco.gov.denied_certificates"
MEMBERS_INFO: Final = "public:ccf.gov.members.info"
MEMBERS_CERTS: Final = "public:ccf.gov.members.certs"
MEMBERS_ENCRYPTION: Final = "public:ccf.gov.members.encryption_public_keys"
USERS_INFO: Final = "public:ccf.gov.users.info"
USERS_CERTS: Final = "public:ccf.gov.users.certs"
MEMBERS_ACKS: Final = "public:ccf.gov.members.acks"
PROPOSALS: Final = "public:ccf.gov.proposals"
PROPOSALS_INFO: Final = "public:ccf.gov.proposals_info"
COSE_HISTORY: Final = "public:ccf.gov.cose_history"
COSE_RECENT: Final = "public:ccf.gov.cose_recent_proposals"
SIGNATURES: Final = "public:ccf.internal.signatures"
COSE_SIGNATURES: Final = "public:ccf.internal.cose_signatures"
TREE: Final = "public:ccf.internal.tree"
#: TransactionId and keyed digest of the newest snapshot: one that this does not name proves nothing.
SNAPSHOT_EVIDENCE: Final = "public:ccf.internal.snapshot_evidence"

#: Leaf of the entry before this one (L1): ties every entry to its predecessor without the tree.
PREDECESSOR: Final = "public:coco.internal.predecessor"
#: The genesis as the network was founded with it: settings, adapters, platform.
GENESIS: Final = "public:coco.gov.genesis"
#: Who may sign for nodes, by the fingerprint of a certificate, and at which addresses (J2).
OPERATORS: Final = "public:coco.gov.operators"
#: The current ledger secret, wrapped; and each former one, wrapped under its successor.
WRAPPED_SECRET: Final = "public:coco.internal.wrapped_ledger_secret"  # noqa: S105 - the name of a table
#: The ledger secret that the next entry begins to use, for each node that is trusted then (J4).
NODE_SECRETS: Final = "public:coco.internal.node_ledger_secrets"
FORMER_SECRETS: Final = "public:coco.internal.former_ledger_secrets"
#: Members' statements that a new service identity continues an old one (J7).
IDENTITY_STATEMENTS: Final = "public:coco.gov.identity_statements"

#: How far the service is on its way to another identity, by vote (J9).
SUCCESSION: Final = "public:coco.gov.service.succession"

#: Private: identities proven for actors, those of Ethereum in a table of their own; claims of entries; what became of
#: transactions whose adapter has it recorded.
ACCOUNTS: Final = "coco.accounts"
IDENTITIES: Final = "coco.identities"
CLAIMS: Final = "coco.claims"
OUTCOMES: Final = "coco.outcomes"
#: Keys that adapters sign with, sealed once more in their rows, and their certificates.
ADAPTER_KEYS: Final = "coco.adapter_keys"
#: Version of each adapter's tables, if it is not the first.
ADAPTER_VERSIONS: Final = "coco.adapter_versions"
#: Composite transactions, by their ids.
COMPOSITES: Final = "coco.composites"
#: What claims are made of, where the framework keeps it for the adapter.
CLAIM_ITEMS: Final = "coco.claim_items"

STATE_TABLES: Final = (
    SERVICE_INFO,
    SERVICE_CONFIG,
    CONSTITUTION,
    NODES_INFO,
    NODE_CERTIFICATES,
    NODE_MEASUREMENTS,
    NODE_CODE_IDS,
    NODE_SNP_MEASUREMENTS,
    NODE_SNP_HOST_DATA,
    NODE_SNP_UVM_ENDORSEMENTS,
    NODE_SNP_TCB_VERSIONS,
    NODE_TDX_MEASUREMENTS,
    NODE_OTHER_MEASUREMENTS,
    TEE_POLICY,
    ADAPTERS,
    DENIED_CERTIFICATES,
    MEMBERS_INFO,
    MEMBERS_CERTS,
    MEMBERS_ENCRYPTION,
    USERS_INFO,
    USERS_CERTS,
    MEMBERS_ACKS,
    PROPOSALS,
    PROPOSALS_INFO,
    COSE_HISTORY,
    COSE_RECENT,
    SIGNATURES,
    COSE_SIGNATURES,
    TREE,
    SNAPSHOT_EVIDENCE,
    PREDECESSOR,
    GENESIS,
    OPERATORS,
    WRAPPED_SECRET,
    FORMER_SECRETS,
    NODE_SECRETS,
    IDENTITY_STATEMENTS,
    SUCCESSION,
    ACCOUNTS,
    IDENTITIES,
    ADAPTER_VERSIONS,
    ADAPTER_KEYS,
)
LOG_TABLES: Final = (CLAIMS, OUTCOMES, COMPOSITES, CLAIM_ITEMS)

#: Tables that say who is who: a change of them makes what is remembered of callers and nodes old.
ACTOR_TABLES: Final = frozenset(
    {
        *(
            NODES_INFO,
            MEMBERS_INFO,
            MEMBERS_CERTS,
            USERS_INFO,
            USERS_CERTS,
            ACCOUNTS,
            IDENTITIES,
            OPERATORS,
            NODE_MEASUREMENTS,
        ),
        *(DENIED_CERTIFICATES, SERVICE_CONFIG, TEE_POLICY, NODE_CODE_IDS),
        *(
            NODE_TDX_MEASUREMENTS,
            NODE_SNP_MEASUREMENTS,
            NODE_SNP_HOST_DATA,
            NODE_SNP_UVM_ENDORSEMENTS,
            NODE_SNP_TCB_VERSIONS,
        ),
        NODE_OTHER_MEASUREMENTS,
    }
)


def row(document: object) -> bytes:
    """Value of a row that is a JSON document: the same bytes for the same document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
