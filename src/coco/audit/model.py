"""Who may write which public row: every step that there is, and for each table what must hold in which step.

Rules:

* Deny by default. A table that is not here, or a step that a table does not name, is a violation; so is a row that a
  step has no reason for, and a sealed part where a step has none.
* Each sentence here is what code of this package checks: a step can take no row that this table does not give it.
* ``scripts/audit_model.py`` writes this into ``docs/ledger.md``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from coco.ledger import tables


class Step(enum.Enum):
    """What an entry is; its rows tell."""

    FOUNDING = "founding"
    OPENING = "opening"
    APPLICATION = "application"
    SIGNATURE = "signature"
    REQUEST = "request"
    ADMISSION = "admission"
    ENDORSEMENT = "endorsement"
    CERTIFICATES = "renewal of certificates"
    EVIDENCE = "renewal of evidence"
    RETIREMENT = "retirement"
    EPOCH = "epoch"
    SNAPSHOT = "snapshot"
    ADAPTER = "beginning of an adapter"
    ANNOUNCEMENT = "announcement of an identity"
    STATEMENT = "statement of an identity"
    SUCCESSION = "succession"
    RECOVERY = "recovery"
    WAITING = "wait for shares"
    KEEPING = "keeping of the recovered secret"
    RECOVERED = "opening after a recovery"
    UNKNOWN = "a step that there is not"


#: What each step is, and what must hold before it.
STEPS: Final[Mapping[Step, str]] = {
    Step.FOUNDING: "entry 1, and no other",
    Step.OPENING: "the service is Opening, and its genesis wants no vote for it",
    Step.APPLICATION: "what adapters did: sealed, with no public row but the predecessor",
    Step.SIGNATURE: (
        "by a node that is trusted at this entry (or leaves by vote, until the next epoch), with the certificate that "
        "it has, while that counts; one node signs in each view; in one life time never falls; what it calls committed "
        "lies before"
    ),
    Step.REQUEST: (
        "one member's signed message, judged again under the rules in force; the service is Opening or Open"
    ),
    Step.ADMISSION: (
        "a node that was never there, with an engine id that none had; its evidence proves its key, the service, "
        "its code, and the manifest has that; trusted: an operator signed for network, service, rules, node, address, "
        "measurement and names, the rules ask for no vote, and nobody was told to leave this address, or the statement "
        "names who was and members had not removed it"
    ),
    Step.ENDORSEMENT: "a node that members trusted has no certificate yet",
    Step.CERTIFICATES: "less than a third of a trusted node's certificate is left",
    Step.EVIDENCE: "newer evidence proves the same code of the same trusted node, and the manifest still has it",
    Step.RETIREMENT: "its operator signed that it leaves, or a newer trusted node of its address replaced it",
    Step.EPOCH: "a node has left, or the epoch is as old as members let it become",
    Step.SNAPSHOT: "names an entry before it, and none before the last one that was named",
    Step.ADAPTER: "members accepted it; its first rows are sealed",
    Step.ANNOUNCEMENT: "members asked for another identity; the key is fresh",
    Step.STATEMENT: (
        "an active member signed exactly the former and the following identity, the place in the ledger and its root"
    ),
    Step.SUCCESSION: "a majority of the active members stated the announced identity",
    Step.RECOVERY: (
        "right after a signature entry, in a later view; the key is fresh; the service is Open or Opening, not "
        "recovering"
    ),
    Step.WAITING: "right after the recovery began",
    Step.KEEPING: "the service waits for shares, and a majority of the active members stated its identity",
    Step.RECOVERED: "the same, and the secret is kept",
}

#: Steps whose entries have a sealed part.
SEALED: Final = frozenset({Step.FOUNDING, Step.APPLICATION, Step.ADAPTER})

_GENESIS = "as the genesis says"
_ASKED = "what the rules make of the request, row by row"
_GOVERNED: Final[Mapping[Step, str]] = {Step.FOUNDING: _GENESIS, Step.REQUEST: _ASKED}
_REQUESTS: Final[Mapping[Step, str]] = {Step.REQUEST: _ASKED}
_CODE: Final[Mapping[Step, str]] = {
    Step.FOUNDING: "the code of the node that founds it",
    Step.REQUEST: _ASKED,
    Step.RECOVERY: "the code of the node that begins this life",
}
_NEXT = "begins with the next entry"
_SHARES = "a share for each keeper that there is then, no other, under its key"
_CERTIFIES = (
    *(Step.FOUNDING, Step.REQUEST, Step.ADMISSION, Step.ENDORSEMENT, Step.CERTIFICATES, Step.EVIDENCE),
    *(Step.SUCCESSION, Step.RECOVERY),
)
_CERTIFICATE = "the service's, for the node's key, engine id, names, evidence and time"

#: Each public table: the steps that write it, and what a row must be then.
TABLES: Final[Mapping[str, Mapping[Step, str]]] = {
    tables.PREDECESSOR: {step: "leaf of the entry before" for step in Step if step is not Step.UNKNOWN},
    tables.GENESIS: {Step.FOUNDING: "the document; never changed"},
    tables.SIGNATURES: {Step.SIGNATURE: "the node's signature over the root of everything before"},
    tables.COSE_SIGNATURES: {Step.SIGNATURE: "the service's, under the key that it has there"},
    tables.TREE: {Step.SIGNATURE: "the tree up to there"},
    tables.SERVICE_INFO: {
        Step.FOUNDING: "Opening, with a certificate of the service that is self-signed",
        Step.OPENING: "Open; nothing else changes",
        Step.REQUEST: "Open, or another certificate of the same key",
        Step.SUCCESSION: "the announced identity",
        Step.RECOVERY: "Recovering, another key, the former identity, its count one higher",
        Step.WAITING: "WaitingForRecoveryShares; nothing else changes",
        Step.RECOVERED: "Open; nothing else changes",
    },
    tables.SERVICE_CONFIG: _GOVERNED,
    tables.CONSTITUTION: _GOVERNED,
    tables.TEE_POLICY: _GOVERNED,
    tables.MEMBERS_INFO: _GOVERNED,
    tables.MEMBERS_CERTS: _GOVERNED,
    tables.MEMBERS_ENCRYPTION: _GOVERNED,
    tables.USERS_INFO: _GOVERNED,
    tables.USERS_CERTS: _GOVERNED,
    tables.OPERATORS: _GOVERNED,
    tables.MEMBERS_ACKS: _REQUESTS,
    tables.PROPOSALS: _REQUESTS,
    tables.PROPOSALS_INFO: _REQUESTS,
    tables.COSE_HISTORY: {Step.REQUEST: "the message itself"},
    tables.COSE_RECENT: _REQUESTS,
    tables.DENIED_CERTIFICATES: _REQUESTS,
    tables.NODE_SNP_HOST_DATA: _REQUESTS,
    tables.NODE_SNP_UVM_ENDORSEMENTS: _REQUESTS,
    tables.NODE_SNP_TCB_VERSIONS: _REQUESTS,
    tables.NODE_MEASUREMENTS: _CODE,
    tables.NODE_CODE_IDS: _CODE,
    tables.NODE_SNP_MEASUREMENTS: _CODE,
    tables.NODE_TDX_MEASUREMENTS: _CODE,
    tables.NODE_OTHER_MEASUREMENTS: _CODE,
    tables.ADAPTERS: {Step.REQUEST: _ASKED, Step.ADAPTER: "Accepted becomes Running; nothing else changes"},
    tables.NODES_INFO: {
        Step.FOUNDING: "the node that founds it: what its evidence proves, engine id 1",
        Step.REQUEST: _ASKED,
        Step.ADMISSION: "what its evidence proves, and its operator's statement",
        Step.EVIDENCE: "the newer evidence and what it proves; nothing else changes",
        Step.RETIREMENT: (
            "Retired, with the statement if there is one; nothing else changes. With one that was replaced go rows of "
            "those who had retired at its address before"
        ),
        Step.EPOCH: "of every node that has left: that this is done",
        Step.RECOVERY: "the node that begins this life; every other trusted one is Retired",
    },
    tables.NODE_CERTIFICATES: {
        **dict.fromkeys(_CERTIFIES, _CERTIFICATE),
        Step.RETIREMENT: "removed, with the rows of nodes that go",
    },
    tables.WRAPPED_SECRET: {
        Step.FOUNDING: f"the first secret: {_SHARES}",
        Step.REQUEST: f"the same secret anew where keepers changed, another where someone left: {_SHARES}",
        Step.EPOCH: f"a secret that {_NEXT}: {_SHARES}",
        Step.SUCCESSION: f"a secret that {_NEXT}: {_SHARES}",
        Step.KEEPING: f"the secret of this life: {_SHARES}",
    },
    tables.NODE_SECRETS: {
        Step.FOUNDING: "when the first epoch began; nobody else needs its secret",
        Step.REQUEST: "the new secret for exactly the nodes that are trusted then",
        Step.EPOCH: "the same",
        Step.SUCCESSION: "the same",
        Step.KEEPING: "when this life's epoch began",
    },
    tables.FORMER_SECRETS: {
        Step.REQUEST: "the secret before, once",
        Step.EPOCH: "the same",
        Step.SUCCESSION: "the same",
        Step.KEEPING: "the last secret of the former life, once",
    },
    tables.SUCCESSION: {
        Step.REQUEST: "Wanted",
        Step.ANNOUNCEMENT: "the place, the root, the former and the following identity, its key for each trusted node",
        Step.SUCCESSION: "removed",
        Step.RECOVERY: "removed, if an identity was wanted",
    },
    tables.IDENTITY_STATEMENTS: {Step.STATEMENT: "filed under its signer and the recovery or announcement it is about"},
    tables.SNAPSHOT_EVIDENCE: {Step.SNAPSHOT: "place and digest"},
}


def writes(step: Step, table: str) -> bool:
    """Whether a step writes a table."""
    return step in TABLES.get(table, {})


def markdown() -> str:
    """The model, for people."""
    lines = ["| step | what must hold before it | sealed part |", "|---|---|---|"]
    lines += [f"| {step.value} | {text} | {'yes' if step in SEALED else 'no'} |" for step, text in STEPS.items()]
    lines += ["", "| table | step | its row |", "|---|---|---|"]
    for table, steps in TABLES.items():
        texts: dict[str, list[str]] = {}
        for step, text in steps.items():
            texts.setdefault(text, []).append(step.value)
        for text, named in texts.items():
            every = len(named) == len(STEPS)
            lines.append(f"| `{table}` | {'every one' if every else ', '.join(named)} | {text} |")
    return "\n".join(lines) + "\n"
