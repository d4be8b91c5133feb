"""The spilled index of the log tables: finds what was written, nothing else, and believes no block that it did not seal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import Store, WriteSet
from coco.enclave.store import LogIndex
from coco.errors import HostLiedError

TABLES = ("log.a", "log.b")


class Host:
    """Keeps blocks as a host would; may give others."""

    def __init__(self):
        self.blocks: dict[tuple[int, int], bytes] = {}
        self.lie = None

    def write_index(self, run, first, blocks):
        for offset, block in enumerate(blocks):
            assert (run, first + offset) not in self.blocks, "no block is ever written twice"
            self.blocks[run, first + offset] = block

    async def read_index(self, run, block):
        await asyncio.sleep(0)
        return self.lie(run, block) if self.lie else self.blocks.get((run, block), b"")

    def drop_index(self, run):
        for place in [place for place in self.blocks if place[0] == run]:
            del self.blocks[place]


async def inline(call, *arguments):
    return call(*arguments)


def make():
    native = Store(0)  # no cache: whatever is committed is cold
    for table in TABLES:
        native.declare(table, True)
    host = Host()
    spawn: Any = asyncio.ensure_future
    index = LogIndex(native, host, run=inline, spawn=spawn, rows_cold_max=1)
    return native, host, index


async def locate(native, index, table, key):
    at = native.written_at(table, key)
    return at if at is not None else await index.locate(table, key)


keys = st.binary(min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.tuples(st.sampled_from(TABLES), keys), st.binary(max_size=4), max_size=12), st.booleans()), max_size=40), st.lists(keys, max_size=10))  # fmt: skip
def test_every_row_is_found_where_it_was_written_through_spills_and_merges(history, absent):
    async def story():
        native, host, index = make()
        reference: dict[tuple[str, bytes], int] = {}
        for version, (rows, spill) in enumerate(history, 1):
            fresh = [(table, key, value) for (table, key), value in rows.items() if (table, key) not in reference]
            native.apply(version, WriteSet(fresh))
            native.commit(version)
            reference.update({(table, key): version for table, key, _ in fresh})
            if spill:
                await index.spill()
                assert native.cold() == 0
        for (table, key), written in reference.items():
            assert await locate(native, index, table, key) == written
        for key in absent:
            for table in TABLES:
                assert await locate(native, index, table, key) == reference.get((table, key))
        assert native.runs_size()[0] <= 7 * 6, "runs of like size are merged"
        assert {run for run, _ in host.blocks} == {run for run, _ in host.blocks if native.has_run(run)}

    asyncio.run(story())


def filled(rows):
    native, host, index = make()
    native.apply(1, WriteSet([("log.a", number.to_bytes(8, "big") * 4, b"v") for number in range(rows)]))
    native.commit(1)
    return native, host, index


def test_a_block_that_is_not_the_one_is_a_lie():
    async def story():
        native, host, index = filled(3000)
        await index.spill()
        key = (1500).to_bytes(8, "big") * 4
        assert await index.locate("log.a", key) == 1
        (run, block), *_ = native.candidates("log.a", key)
        other = next(place for place in host.blocks if place != (run, block))
        flipped = bytearray(host.blocks[run, block])
        flipped[5] ^= 1
        for lie in (b"", b"x" * 100, bytes(flipped), host.blocks[other], host.blocks[run, block][:-1]):
            host.lie = lambda *_, lie=lie: lie
            with pytest.raises(HostLiedError) as found:
                await index.locate("log.a", key)
            assert found.value.code == "channel.wrong_index_block"
            with pytest.raises(HostLiedError):
                native.apply(native.latest + 1, WriteSet([("log.b", bytes([native.latest]), b"")]))
                native.commit(native.latest)
                for _ in range(9):
                    native.apply(native.latest + 1, WriteSet([("log.b", bytes([native.latest]), b"")]))
                    native.commit(native.latest)
                    await index.spill()

    asyncio.run(story())


def test_blocks_show_nothing_of_their_rows_and_memory_gets_small():
    async def story():
        native, host, index = filled(60_000)
        await index.spill()
        assert native.cold() == 0 and native.len("log.a") == 0
        for block in host.blocks.values():
            assert (7).to_bytes(8, "big") * 4 not in block
        runs, size = native.runs_size()
        assert runs == 1 and size < 3 * 60_000, "bytes of memory for each row"
        assert await index.locate("log.a", b"absent") is None

    asyncio.run(story())


def test_rows_that_are_not_committed_stay():
    async def story():
        native, _, index = make()
        native.apply(1, WriteSet([("log.a", b"k1", b"v")]))
        native.commit(1)
        native.apply(2, WriteSet([("log.a", b"k2", b"v")]))
        await index.spill()
        assert native.written_at("log.a", b"k2") == 2
        native.roll_back(1)
        assert await locate(native, index, "log.a", b"k2") is None
        assert await locate(native, index, "log.a", b"k1") == 1

    asyncio.run(story())


def test_spilling_begins_by_itself_and_once():
    async def story():
        native, host, index = filled(10)
        index.relieve()
        index.relieve()
        while native.cold():
            await asyncio.sleep(0)
        assert {run for run, _ in host.blocks} == {1}
        index.relieve()
        await asyncio.sleep(0)
        assert {run for run, _ in host.blocks} == {1}

    asyncio.run(story())


def test_a_run_that_is_merged_during_a_lookup_is_looked_for_again():
    async def story():
        native, host, index = make()

        async def spill():
            number = native.latest + 1
            native.apply(number, WriteSet([("log.a", bytes([number]) * 3, b"")]))
            native.commit(number)
            await index.spill()

        for _ in range(7):
            await spill()
        read = host.read_index
        merged: list[Any] = []

        async def read_after_a_merge(run, block):
            if not merged:
                merged.append(run)
                await spill()  # the eighth of its size: all are merged into one, and dropped
            return await read(run, block)

        host.read_index = read_after_a_merge
        assert await index.locate("log.a", bytes([1]) * 3) == 1
        assert not native.has_run(merged[0])

    asyncio.run(story())
