"""Queries: calls that only read, on threads of their own, in turn by who asks.

Rules: commit before write before read before list. Batches and signatures have other threads, which the system prefers
to these; *reads* ask one thing of one state, *lists* give many items, and the system prefers reads to them. One actor
has at most half of the threads, so that another one's short call never waits behind its long ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from coco import limits
from coco.enclave.ordering.turns import ASKING, Turns

#: How much these threads yield to others (``nice``). No more: while one has the interpreter, everybody waits for it.
_READ_NICE, _LIST_NICE = 4, 8


class _Threads:
    """Threads of one class of work, and whose turn it is."""

    def __init__(self, name: str, threads: int, *, per_actor: int, nice: int) -> None:
        self._turns = Turns(
            threads, per_actor=per_actor, waiting_max=limits.QUERIES_WAITING_MAX, code="queries.too_many"
        )
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix=f"coco-{name}", initializer=partial(_yield_to_others, nice)
        )

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run it when it is its actor's turn."""
        async with self._turns.turn(ASKING.get()):
            work = partial(function, *arguments)
            running = asyncio.get_running_loop().run_in_executor(self._executor, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                # Whoever asked is gone; its thread is taken until the call has ended.
                with contextlib.suppress(Exception):
                    await running
                raise


def _yield_to_others(nice: int) -> None:
    """Of this thread alone: Linux takes 0 for whoever calls. Where there is no such kernel it stays as it is."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class Queries:
    """Threads for reads and for lists."""

    def __init__(self) -> None:
        threads = max(limits.QUERY_THREADS_MIN, 2 * len(os.sched_getaffinity(0)))
        self._reads = _Threads("read", threads, per_actor=threads // 2, nice=_READ_NICE)
        self._lists = _Threads("list", threads // 2, per_actor=threads // 4, nice=_LIST_NICE)

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call of the extension that asks one thing."""
        return await self._reads.run(function, *arguments)

    async def list(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call of the extension that gives many items, or is one step to that."""
        return await self._lists.run(function, *arguments)
