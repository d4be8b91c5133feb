"""Ledger protocols on Coco. An adapter sees the contract in :mod:`base`, the store and the extension, nothing else."""
