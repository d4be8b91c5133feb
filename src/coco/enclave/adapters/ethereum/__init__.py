"""Ethereum: JSON-RPC and blocks on the Coco store, executed by ``revm`` in the extension."""

from coco.enclave.adapters.ethereum.adapter import EthereumAdapter

__all__ = ["EthereumAdapter"]
