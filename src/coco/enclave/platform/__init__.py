"""What the enclave stands on: its start and lock-down, its channel to the host, forked children, evidence readers."""
