"""TRUSTED: everything that runs inside the enclave process. It opens no file and no connection of its own."""
