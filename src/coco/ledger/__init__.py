"""The open ledger format: entries, signatures, receipts, chunk files, and their verification.

Used by enclaves and by clients; no I/O but in :mod:`coco.ledger.chunks`.
"""
