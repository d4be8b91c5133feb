"""Python client: verifies attestation, the pinned service identity and receipts by default."""

from coco.client.http import HttpsClient
from coco.client.pin import Pin
from coco.client.verify import verify_node

__all__ = ["HttpsClient", "Pin", "verify_node"]
