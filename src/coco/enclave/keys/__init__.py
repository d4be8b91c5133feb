"""Keys of a node and of the service: identities, certificates, and the epochs of the ledger's secrets."""
