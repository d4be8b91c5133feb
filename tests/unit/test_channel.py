"""The control channel: bounded, typed, in order; a lie has a name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco import limits
from coco.channel import messages
from coco.channel.framing import FrameReader, FrameWriter
from coco.enclave.platform.control import Control
from coco.errors import HostLiedError

START = messages.Start("create", 0, 1, b"{}", b"", "", ["localhost"], "127.0.0.1:1", [])


class Wire:
    """An enclave's control channel whose host is the test."""

    def __init__(self):
        self.ended: list[Any] = []
        self.control = Control(self.ended.append)
        self.writer = FrameWriter()

    def send(self, *sent):
        for message in sent:
            self.control.data_received(self.writer.frame(messages.encode(message)))

    @property
    def code(self):
        assert len(self.ended) == 1
        return self.ended[0].code


def lie(do):
    async def story():
        wire = Wire()
        do(wire)
        return wire.code

    return asyncio.run(story())


def test_every_message_survives_its_encoding():
    for message in (
        START,
        messages.Appended(4),
        messages.Entries(1, [b"x"]),
        messages.Tick(5),
        messages.Stop(),
    ):
        assert messages.decode_to_enclave(messages.encode(message)) == message
    for told in (
        messages.Append(1, [b"x"]),
        messages.Log("a.b", {"n": 1}, {}),
        messages.Exit("a", {}, {}),
    ):
        assert messages.decode_to_host(messages.encode(told)) == told


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 20))
def test_frames_survive_any_cut(sent, size):
    writer, reader = FrameWriter(), FrameReader()
    stream = b"".join(writer.frame(one) for one in sent)
    received = [m for at in range(0, len(stream), size) for m in reader.feed(stream[at : at + size])]
    assert received == sent


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_garbage_on_the_channel_has_a_code(data):
    async def story():
        wire = Wire()
        wire.control.data_received(data)
        return wire.ended

    for error in asyncio.run(story()):
        assert error.code.startswith("channel.")


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_a_well_framed_garbage_message_has_a_code(data):
    async def story():
        wire = Wire()
        wire.control.data_received(wire.writer.frame(data))
        return wire.ended

    ended = asyncio.run(story())
    assert len(ended) == 1 or messages.decode_to_enclave(data)
    assert all(error.code.startswith("channel.") for error in ended)


def test_each_lie_has_its_name():
    oversized = (limits.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big") + (1).to_bytes(8, "big")
    assert lie(lambda w: w.control.data_received(oversized)) == "channel.oversized"
    skipped = FrameWriter()
    skipped.frame(b"")
    assert lie(lambda w: w.control.data_received(skipped.frame(messages.encode(START)))) == "channel.out_of_order"
    frame = FrameWriter().frame(messages.encode(START))
    assert lie(lambda w: w.control.data_received(frame + frame)) == "channel.out_of_order"
    assert lie(lambda w: w.send(messages.Tick(1))) == "channel.unexpected_message"
    assert lie(lambda w: w.send(START, START)) == "channel.unexpected_message"
    assert lie(lambda w: w.send(START, messages.Appended(1))) == "channel.false_durability"
    assert lie(lambda w: w.send(START, messages.Entries(1, []))) == "channel.unexpected_message"
    assert lie(lambda w: w.send(START, messages.Truncated(1))) == "channel.unexpected_message"
    assert lie(lambda w: w.send(START, messages.ExternalReceived(9, b""))) == "channel.unexpected_message"
    unknown = msgspec.msgpack.encode(["unknown", 1])
    assert lie(lambda w: w.control.data_received(w.writer.frame(unknown))) == "channel.invalid_message"
    negative = msgspec.msgpack.encode(["tick", -1])
    assert lie(lambda w: w.control.data_received(w.writer.frame(negative))) == "channel.invalid_message"
    assert lie(lambda w: w.control.data_received(w.writer.frame(b"\xc1"))) == "channel.malformed_message"


def test_durability_cannot_be_claimed_twice_or_ahead():
    def do(wire):
        wire.send(START)
        wire.control.begin_at(3)
        wire.control.append(4, b"entry")
        wire.send(messages.Appended(4), messages.Appended(4))

    assert lie(do) == "channel.false_durability"


def test_a_reply_with_more_than_was_asked_for_is_a_lie():
    async def story():
        wire = Wire()
        wire.send(START)
        asked = asyncio.ensure_future(wire.control.read(1, 2))
        await asyncio.sleep(0)
        wire.send(messages.Entries(1, [b"1", b"2", b"3"]))
        asked.cancel()
        return wire.code

    assert asyncio.run(story()) == "channel.unexpected_message"


def test_the_host_closing_the_channel_is_no_lie():
    async def story():
        wire = Wire()
        wire.control.connection_lost(None)
        return wire.ended

    assert asyncio.run(story()) == [None]


def test_frames_of_the_enclave_are_checked_by_the_host_too():
    reader = FrameReader()
    with pytest.raises(HostLiedError):
        list(reader.feed(b"\xff" * 12))


def test_text_that_is_not_utf8_is_a_malformed_message():
    """Found by ``make fuzz``: msgspec has an exception of its own for it."""
    garbled = bytes.fromhex("9ba29b9b9b9b9b9b9b")
    assert lie(lambda w: w.control.data_received(w.writer.frame(garbled))) == "channel.malformed_message"
