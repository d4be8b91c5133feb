"""Attacks of a host: whoever runs a node's host process, its disk and its network, and would like more than that.

The campaign with many lives of lying hosts is ``tests/faults/lying_host.py``; here is each kind once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from attacks import attack

from coco import limits
from coco.channel import messages
from coco.channel.framing import FrameWriter
from coco.enclave.core.control import Control
from coco.enclave.core.identity import ServiceIdentity, endorsed_names
from coco.errors import CocoError, HostLiedError

# --- E1: what a host says must end an enclave with a code, or not at all ---

START = messages.Start("create", 0, 1_800_000_000_000, b"{}", b"", "", [], "127.0.0.1:1", [])


@attack(
    "E1",
    was="a host's clock in the year 285,000 ends the enclave with `enclave.failed`: a date that no calendar has",
    now="no message can hold such a time: `channel.invalid_message`",
)
@pytest.mark.parametrize("time_ms", [limits.TIME_MS_MAX, (1 << 53) - 1])
def test_a_time_that_no_calendar_has_is_no_message(time_ms):
    for message in (messages.Tick(time_ms), messages.Start("create", 0, time_ms, b"{}", b"", "", [], "a:1", [])):
        with pytest.raises(HostLiedError) as refused:
            messages.decode_to_enclave(messages.encode(message))
        assert refused.value.code == "channel.invalid_message"
    # The latest time that one can hold leaves room for every certificate.
    ServiceIdentity.generate(limits.TIME_MS_MAX - 1).renewed(limits.TIME_MS_MAX - 1, 3650)


@attack(
    "E1",
    was="whatever a message makes fail closes the channel: the enclave ends with exit code 0 and without a word",
    now="the enclave ends with the failure's name and place",
)
def test_a_message_that_makes_something_fail_ends_the_enclave_with_a_reason():
    async def story() -> None:
        ended: list[Any] = []
        control, frames = Control(ended.append), FrameWriter()

        def fails(time_ms: int) -> None:
            raise KeyError("nobody expected this")

        control.on_tick = fails
        for message in (START, messages.Tick(1)):
            control.data_received(frames.frame(messages.encode(message)))
        assert [type(error) for error in ended] == [KeyError]

    asyncio.run(story())


@attack(
    "E1",
    was="a host name that no certificate can hold is a ValueError in the enclave; a joiner's is one in the primary",
    now="`join.bad_host_name`, and the joiner stops",
)
def test_a_host_name_that_no_certificate_can_hold_is_refused():
    service = ServiceIdentity.generate(1_800_000_000_000)
    key = ServiceIdentity.generate(0).key.public_key()
    with pytest.raises(CocoError) as refused:
        service.endorse(key, 1, ["knoten-ä"], 1_800_000_000_000)
    assert refused.value.code == "join.bad_host_name"
    assert endorsed_names(service.endorse(key, 1, ["n1", "::1"], 1_800_000_000_000)) == ["n1", "::1"]
