"""UNTRUSTED: the Coco interface. Listeners, persistence, launching an enclave.

It owes the enclave availability and persistence, nothing else; it sees ciphertext, sizes and times.
"""
