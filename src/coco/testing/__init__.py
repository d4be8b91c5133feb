"""A whole network in one process, for tests of ledger protocols and of applications on them.

    def test_a_key_has_one_owner(coco_network):
        network = coco_network(adapters={"kv": kv_ledger.adapter})
        alice, bob = network.participant("alice"), network.participant("bob")
        assert alice.request("PUT", "/kv/colour", b"blue").status == 201
        assert bob.request("GET", "/kv/colour").status == 404

What runs is the enclave's own code: adapters, pools, order, seals, signatures, consensus between the nodes. What is not
there are processes, their walls, sockets, TLS and a disk: a test of those starts nodes (``coco sandbox``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coco.testing.clients import Network, Participant
    from coco.testing.nodes import Response

__all__ = ["Network", "Participant", "Response"]
_WHERE = {"Network": "clients", "Participant": "clients", "Response": "nodes"}


def __getattr__(name: str) -> Any:
    # Pytest loads the plug-in beside this for every run, and most tests want no network.
    if name not in _WHERE:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"coco.testing.{_WHERE[name]}"), name)
