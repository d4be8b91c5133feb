"""The replicated persistent store: tables with one global order, and the journal that seals what changes them."""

from coco.enclave.store.index import LogIndex
from coco.enclave.store.journal import Journal, SealedEntry
from coco.enclave.store.tables import Store, StoreTransaction, StoreView

__all__ = ["Journal", "LogIndex", "SealedEntry", "Store", "StoreTransaction", "StoreView"]
