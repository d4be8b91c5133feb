"""Filters and subscriptions: what happened in committed blocks since the last poll.

Rules: filters belong to the actor that made them; they live as long as they are polled; events fire at commit only.
An actor may have so many, and all strangers together so many: nobody takes another's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import Any

from coco import limits
from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Stream, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend, Filter
from coco.enclave.adapters.ethereum.parameters import LogQuery, log_query

_QUEUE_MAX = 1000


class EventHub:
    """Keeps filters and streams of one chain on one node."""

    def __init__(self, chain: Backend) -> None:
        self._chain = chain
        self._filters: dict[str, Filter] = {}
        self._streams: dict[asyncio.Queue[Block | None], None] = {}
        #: When filters that nobody polls are looked for again.
        self._forget_at = 0.0
        #: Filters and streams of each actor; "" are all strangers.
        self._filters_of: Counter[str] = Counter()
        self._streams_of: Counter[str] = Counter()

    def install(self, installed: Filter) -> str:
        """Add a filter; return its id, which is random so that nobody guesses another's."""
        now = asyncio.get_running_loop().time()
        most = limits.ACTOR_FILTERS_MAX if installed.actor else limits.ANONYMOUS_FILTERS_MAX
        if now >= self._forget_at:
            self._forget_at = now + limits.FILTER_SECONDS_MAX / 10
            for key in [k for k, f in self._filters.items() if now - f.touched_at > limits.FILTER_SECONDS_MAX]:
                self._remove(key)
        if self._filters_of[installed.actor] >= most or len(self._filters) >= limits.FILTERS_MAX:
            raise _too_many("filters", installed.actor, most)
        self._filters_of[installed.actor] += 1
        installed.touched_at = now
        name = "0x" + secrets.token_hex(16)
        self._filters[name] = installed
        return name

    def get(self, name: str, caller: Caller) -> Filter:
        """The caller's filter of that name.

        Raises:
            AdapterError: none, expired, or another's (``ethereum.filter_not_found``).
        """
        found = self._filters.get(name)
        now = asyncio.get_running_loop().time()
        if found is None or found.actor != caller.actor or now - found.touched_at > limits.FILTER_SECONDS_MAX:
            raise AdapterError("filter not found", code="ethereum.filter_not_found")
        found.touched_at = now
        return found

    def uninstall(self, name: str, caller: Caller) -> bool:
        """Remove the caller's filter."""
        found = self._filters.get(name)
        if found is None or found.actor != caller.actor:
            return False
        self._remove(name)
        return True

    def _remove(self, name: str) -> None:
        actor = self._filters.pop(name).actor
        self._filters_of[actor] -= 1
        if not self._filters_of[actor]:
            del self._filters_of[actor]

    def behind(self, name: str, newest: int) -> int:
        """Blocks that a filter was not asked about yet."""
        found = self._filters.get(name)
        return 0 if found is None else max(newest - found.next_block + 1, 0)

    def begins(self, name: str) -> int | None:
        """The block with which a filter for logs begins."""
        found = self._filters.get(name)
        return None if found is None or found.kind != "logs" else found.from_block

    def publish(self, blocks: list[Block]) -> None:
        """Blocks were committed."""
        for stream in list(self._streams):
            for block in blocks:
                if stream.qsize() >= _QUEUE_MAX:
                    # A reader this slow has lost events: end its stream rather than lie by omission.
                    self._streams.pop(stream, None)
                    stream.put_nowait(None)
                    break
                stream.put_nowait(block)

    async def stream(self, request: Request, stream: Stream) -> None:
        """Heads or logs as they are committed.

        Raises:
            AdapterError: the caller has too many, or it is nothing to subscribe to, or too slow for it.
        """
        params = list(request.params)
        kind = params[0] if params else None
        if kind not in ("newHeads", "logs"):
            raise AdapterError(f"unsupported subscription {kind!r}", code="ethereum.bad_subscription", rpc_code=-32602)
        actor = stream.caller.actor
        self._check_streams(stream.caller)
        wanted = log_query(params[1] if len(params) > 1 else {}) if kind == "logs" else None
        blocks: asyncio.Queue[Block | None] = asyncio.Queue()
        self._streams[blocks] = None
        self._streams_of[actor] += 1
        try:
            await stream.accept()
            while (block := await blocks.get()) is not None:
                await self._tell(stream, block, wanted)
        finally:
            self._streams.pop(blocks, None)
            self._streams_of[actor] -= 1
            if not self._streams_of[actor]:
                del self._streams_of[actor]

    async def _tell(self, stream: Stream, block: Block, wanted: LogQuery | None) -> None:
        if wanted is None:
            await stream.send(Visible([visibility.Head(block.header())], lambda seen: seen[0].document))
            return
        caller = visibility.viewer(stream.caller, self._chain.settings.visibility)
        for place in wanted.matches(block, caller):
            await stream.send(Visible([visibility.Logs([(block, [place])], caller)], _log))

    def _check_streams(self, caller: Caller) -> None:
        most = limits.ACTOR_SUBSCRIPTIONS_MAX if caller.actor else limits.ANONYMOUS_SUBSCRIPTIONS_MAX
        if self._streams_of[caller.actor] >= most or len(self._streams) >= limits.FILTERS_MAX:
            raise _too_many("subscriptions", caller.actor, most)


def _log(seen: list[visibility.Logs]) -> Any:
    ((block, (place,)),) = seen[0].blocks
    return block.log(*place)


def _too_many(what: str, actor: str, most: int) -> AdapterError:
    whose = f"one actor may have at most {most}" if actor else f"all without a certificate share {most}"
    return AdapterError(
        f"too many {what}: {whose}",
        code="ethereum.too_many_filters",
        rpc_code=-32005,
        hint=f"remove some, or come back: what is not polled for {limits.FILTER_SECONDS_MAX} s is forgotten",
    )
