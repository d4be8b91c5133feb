"""The messages between host and enclave, and their limits. Both sides import it; it imports neither."""
