"""When an entry is committed. One node for now; a network of nodes puts the engine's driver in this place."""

from coco.enclave.consensus.commit import CommitTracker

__all__ = ["CommitTracker"]
