"""When an entry is committed: the engine's driver, without I/O and without a clock."""

from coco.consensus.driver import (
    NOWHERE,
    Action,
    Apply,
    Committed,
    Driver,
    Install,
    Members,
    MembersChanged,
    Persist,
    Promoted,
    ReadReady,
    RollBack,
    Send,
    Start,
    Timing,
    ViewChanged,
    engine_settings,
)
from coco.consensus.pieces import LedgerEntry

__all__ = [
    "NOWHERE",
    "Action",
    "Apply",
    "Committed",
    "Driver",
    "Install",
    "LedgerEntry",
    "Members",
    "MembersChanged",
    "Persist",
    "Promoted",
    "ReadReady",
    "RollBack",
    "Send",
    "Start",
    "Timing",
    "ViewChanged",
    "engine_settings",
]
