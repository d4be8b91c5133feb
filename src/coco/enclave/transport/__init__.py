"""TLS: listeners for clients, links between nodes."""
