"""What an operator can do about what an enclave says: its messages carry codes and numbers, never text (H1)."""

#: What the loss of a majority means, and the way out.
MAJORITY_LOST = (
    "a majority of the voting nodes does not answer. A process that is started again is a new node, which may not "
    "stand in for a lost one. If the lost processes come back by themselves (a network that heals), do nothing; "
    "if not, stop every node and recover from the ledger that goes furthest: "
    "coco node start --dir DIR --genesis FILE --service service.pem; then members give their shares "
    "(docs/when-nodes-are-lost.md)"
)
_SET_THE_CLOCK = "set this machine's clock, then start again; nothing was written"
_ACCEPT = "; if the clock is right: --accept-clock, once"
#: What an operator can do about what an enclave says, whose messages carry no text.
HINTS = {
    "clock.ahead_of_the_ledger": f"{_SET_THE_CLOCK}{_ACCEPT} (the ledger slept for so long)",
    "clock.behind_the_ledger": f"{_SET_THE_CLOCK}{_ACCEPT} (the ledger was written under a wrong one)",
    "join.clock_ahead": f"{_SET_THE_CLOCK}; or the network's is behind",
    "join.clock_behind": f"{_SET_THE_CLOCK}; or the network runs under a wrong one (SECURITY.md, Time)",
    "join.address_left": "a node was told to leave this address: start one elsewhere; or, if it is to come back, with "
    "--returns NODE_ID (coco status shows who left), and a vote if members removed it",
    "join.retired": "members or its operator let this node go",
    "node.retired": "members or its operator let this node go; if one is to come back here: coco node join --returns",
    "join.majority_lost": MAJORITY_LOST,
    "consensus.majority_lost": MAJORITY_LOST,
    "join.nobody_answers": f"start another node first, or look at --peer; if no node is left: {MAJORITY_LOST}",
    "ledger.damaged": "take another copy of the ledger: docs/when-nodes-are-lost.md",
    "ledger.unsigned": "nothing in this ledger was ever signed: give another --dir, or put a copy of the ledger here",
    "recovery.other_service": "--service is the service that was open last, not one whose recovery did not end",
}
