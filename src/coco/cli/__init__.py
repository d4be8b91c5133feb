"""The ``coco`` command."""
