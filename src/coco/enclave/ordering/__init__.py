"""From a submitted transaction to its place in the ledger, and who hears of it."""
