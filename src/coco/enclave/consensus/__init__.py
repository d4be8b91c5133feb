"""When an entry is committed. One node for now; the engine's driver takes this place with a network of several nodes."""

from coco.enclave.consensus.commit import CommitTracker

__all__ = ["CommitTracker"]
