"""A network of nodes in one process and in virtual time, with faults drawn from a seed: ``coco simulate``.

Rules: the driver of consensus is the one that nodes run; everything around it (clock, network, disks, clients, the
state machine) is simulated; one seed is one run, to the last message. INSECURE by purpose: nothing here is encrypted.
"""

from coco.simulator.campaign import Plan, Report, run

__all__ = ["Plan", "Report", "run"]
