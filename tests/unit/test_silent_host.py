"""A host that owes an answer is named in the log, with what it owes; one that answers is not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from coco.channel import messages
from coco.channel.framing import FrameReader, FrameWriter
from coco.enclave.platform import control as controls
from coco.enclave.platform.control import Control

SILENT_S, LOOK_S = controls._SILENT_S, controls._LOOK_S


class Host:
    """The other end of the channel."""

    def __init__(self) -> None:
        self.control, self._frames, self._reader = Control(lambda error: None), FrameWriter(), FrameReader()
        self.said: list[Any] = []
        self.control.connection_made(self)  # type: ignore[arg-type]
        self.send(messages.Start("create", 0, 0, b"", b"", "", [], "", []))

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.said += [messages.decode_to_host(frame) for frame in self._reader.feed(data)]

    def frame(self, message: Any) -> bytes:
        return self._frames.frame(messages.encode(message))

    def send(self, message: Any) -> None:
        self.control.data_received(self.frame(message))

    def owes(self) -> set[str]:
        lines = [one for one in self.said if isinstance(one, messages.Log) and one.code == "channel.host_silent"]
        return {line.ids["owes"] for line in lines}


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run a story in virtual time: whenever everything waits, the clock goes on to the next that is due."""
    loop = asyncio.SelectorEventLoop()
    now_s, select = 0.0, loop._selector.select  # type: ignore[attr-defined]

    def no_wait(timeout: float | None) -> Any:
        nonlocal now_s
        now_s += timeout or 0.0
        return select(0)

    loop.time = lambda: now_s
    loop._selector.select = no_wait  # type: ignore[attr-defined]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(story)


def test_what_a_silent_host_owes_is_said():
    async def story() -> None:
        host = Host()
        control = host.control
        waiting = [
            asyncio.ensure_future(one)
            for one in (
                control.read_some(1, 2),
                control.read_index(1, 1),
                control.read_snapshot(1, 1),
                control.write_snapshot(1, 1, b"x"),
                control.truncate(0),
            )
        ]
        control.append(1, b"entry")
        control.data_received(host.frame(messages.Tick(1))[:-1])
        # It is looked after from time to time: what it owes is seen at the first look, and is old enough at a later one.
        await asyncio.sleep(SILENT_S)
        assert host.owes() == set(), "not before"
        await asyncio.sleep(2 * LOOK_S)
        kinds = {"appended", "truncated", "entries", "index_block", "snapshot_part", "snapshot_written"}
        assert host.owes() == {*kinds, "rest_of_a_message"}
        for one in waiting:
            one.cancel()

    run(story())


def test_a_host_that_answers_is_not_named():
    async def story() -> None:
        host = Host()
        for seqno in range(1, 12):
            host.control.append(seqno, b"entry")
            await asyncio.sleep((SILENT_S - 2 * LOOK_S) / 2)
            if seqno > 1:
                host.send(messages.Appended(seqno - 1))
        assert host.owes() == set(), "there was always something under way, and always something else"

    run(story())
