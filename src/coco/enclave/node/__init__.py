"""One validating node: its process, its wiring and its life."""
