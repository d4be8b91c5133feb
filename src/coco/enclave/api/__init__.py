"""TLS, HTTP, JSON-RPC and the routes: who may call, within which limits."""
