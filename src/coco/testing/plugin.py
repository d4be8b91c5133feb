"""The plug-in of pytest: the fixture ``coco_network`` makes networks, which end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coco.testing.clients import Network


@pytest.fixture
def coco_network() -> Iterator[Callable[..., Network]]:
    """Makes a network: the arguments are those of :class:`coco.testing.Network`."""
    with ExitStack() as networks:

        def make(**options: Any) -> Network:
            # Imported for whoever asks for a network, and for no other test.
            from coco.testing.clients import Network

            return networks.enter_context(Network(**options))

        yield make
