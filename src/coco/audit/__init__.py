"""Judges a ledger again, trusting no node: see :mod:`coco.audit.auditor`."""

from coco.audit.auditor import Auditor

__all__ = ["Auditor"]
