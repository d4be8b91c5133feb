"""Coco core: the enclave's only door, where host and enclave meet."""
