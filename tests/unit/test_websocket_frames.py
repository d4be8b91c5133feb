"""Frames of a WebSocket are counted before they are read, however they are cut."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coco import limits
from coco.enclave.api.websocket import FrameCounter, accept_websocket

HANDSHAKE = [
    (b"host", b"x"),
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]


def frame(opcode, size, *, final=True, masked=True):
    first = opcode | (0x80 if final else 0)
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([first, mask | size])
    elif size < 65536:
        head = bytes([first, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, mask | 127]) + size.to_bytes(8, "big")
    return head + bytes(4 if masked else 0) + b"x" * size


FRAMES = st.tuples(
    st.sampled_from([0, 1, 2, 8, 9, 10]),
    st.sampled_from([0, 1, 125, 126, 300, 511, 512, 65535, 65536]),
    st.booleans(),
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=12), st.integers(1, 5000))
def test_frames_and_those_that_carry_nothing_are_counted_whatever_the_cut(wanted, piece):
    data = b"".join(frame(o, size, final=final, masked=masked) for o, size, final, masked in wanted)
    counter, frames, idle = FrameCounter(), 0, 0
    for at in range(0, len(data), piece):
        more = counter.count(data[at : at + piece])
        frames, idle = frames + more[0], idle + more[1]
    nothing = [
        o not in (0, 1, 2) or size == 0 or (not final and size < limits.FRAGMENT_BYTES_MIN)
        for o, size, final, _ in wanted
    ]
    assert (frames, idle) == (len(wanted), sum(nothing))


def session_of(out):
    made = accept_websocket(b"/", HANDSHAKE, out.append, lambda: None, asyncio.Event())
    assert made is not None
    return made


def test_what_came_is_work_and_more_messages_than_may_wait_end_the_session():
    async def story():
        out: list[Any] = []
        session = session_of(out)
        one, ten = session.feed(frame(1, 20)), session.feed(frame(1, 20) * 10)
        assert 0 < one < ten < 10 * one
        session.feed(frame(1, 20) * 2000)
        assert (1009).to_bytes(2, "big") in out[-1]
        assert session.feed(frame(1, 20)) == 0, "nothing is read any more"

    asyncio.run(story())


def test_empty_parts_of_a_message_take_no_memory():
    async def story():
        session = session_of([])
        session.feed(frame(1, 0, final=False) + frame(0, 0, final=False) * 50)
        assert session._parts == []
        session.feed(frame(0, 5))
        assert await session.receive() == "xxxxx"

    asyncio.run(story())
