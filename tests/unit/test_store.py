"""The store against a short pure-Python reference, over random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import LedgerSecret, Store, WriteSet
from coco.errors import StoreError

keys = st.binary(min_size=0, max_size=3)
values = st.one_of(st.none(), st.binary(max_size=4))
writes = st.dictionaries(keys, values, max_size=6)


class Reference:
    """Every version kept whole."""

    def __init__(self) -> None:
        self.versions: list[dict[bytes, bytes]] = [{}]
        self.committed = 0
        self.oldest = 0

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        state = dict(self.versions[-1])
        for key, value in changes.items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        self.versions.append(state)

    def scan(self, version: int, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return sorted((k, v) for k, v in self.versions[version].items() if k.startswith(prefix))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), writes),
        st.tuples(st.just("roll_back"), st.integers(0, 30)),
        st.tuples(st.just("commit"), st.integers(0, 30)),
        st.tuples(st.just("prune"), st.integers(0, 30)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(steps, keys)
def test_every_history_reads_like_the_reference(history, prefix):
    store, reference = Store(), Reference()
    store.declare("t", False)
    for kind, argument in history:
        latest = len(reference.versions) - 1
        if kind == "apply":
            reference.apply(argument)
            store.apply(latest + 1, WriteSet([("t", key, value) for key, value in argument.items()]))
        elif kind == "roll_back":
            to = min(argument, latest)
            if to < reference.committed:
                with pytest.raises(StoreError) as refused:
                    store.roll_back(to)
                assert refused.value.code == "store.committed"
                continue
            store.roll_back(to)
            del reference.versions[to + 1 :]
            reference.oldest = min(reference.oldest, to)
        elif kind == "commit":
            to = max(reference.committed, min(argument, latest))
            store.commit(to)
            reference.committed = to
        else:
            to = min(argument, reference.committed)
            store.prune(to)
            reference.oldest = max(reference.oldest, to)
        latest = len(reference.versions) - 1
        assert (store.latest, store.committed, store.oldest) == (
            latest,
            reference.committed,
            reference.oldest,
        )
        for version in range(reference.oldest, latest + 1):
            assert store.scan("t", prefix, None, version, 1000) == reference.scan(version, prefix)
            for key, value in reference.versions[version].items():
                assert store.get("t", key, version) == value
        if reference.oldest > 0:
            with pytest.raises(StoreError) as gone:
                store.get("t", b"", reference.oldest - 1)
            assert gone.value.code == "store.version_unavailable"


@given(writes, writes)
def test_equal_states_have_equal_digests_and_only_they(first, second):
    secret = LedgerSecret.generate()

    def digest(*changes):
        store = Store()
        store.declare("t", False)
        for version, change in enumerate(changes, 1):
            store.apply(version, WriteSet([("t", k, v) for k, v in change.items()]))
        return secret.state_digest(store), dict(store.scan("t"))

    (one, state_one), (two, state_two) = digest(first, second), digest({**first, **second})
    assert (one == two) == (state_one == state_two)
    (three, state_three), (four, state_four) = digest(first), digest(second)
    assert (three == four) == (state_three == state_four)


@given(st.lists(st.tuples(st.sampled_from(["public:a", "b", "c"]), keys, values), max_size=12))
def test_write_sets_have_one_encoding(rows):
    made = WriteSet(rows)
    again = WriteSet.decode(made.encode_public(), made.encode_private())
    assert again.encode_public() == made.encode_public()
    assert again.encode_private() == made.encode_private()
    assert {t: again.rows(t) for t in again.tables()} == {t: made.rows(t) for t in made.tables()}


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_no_write_set(data):
    try:
        decoded = WriteSet.decode(b"", data)
    except StoreError as error:
        assert error.code == "store.malformed"
    else:
        assert decoded.encode_private() == data, "what is accepted is canonical"


@given(st.lists(st.tuples(keys, values), max_size=8), st.lists(st.tuples(keys, values), max_size=8), keys)
def test_a_savepoint_undoes_what_came_after_it(before, after, prefix):
    store = Store()
    store.declare("t", False)
    store.apply(1, WriteSet([("t", b"\x01", b"base")]))
    transaction = store.begin()

    def write(rows):
        for key, value in rows:
            if value is None:
                transaction.remove("t", key)
            else:
                transaction.put("t", key, value)

    write(before)
    seen = transaction.scan("t", prefix)
    point = transaction.savepoint()
    write(after)
    transaction.roll_back(point)
    assert transaction.scan("t", prefix) == seen
    store.apply(2, transaction.write_set())
    assert store.scan("t", prefix) == seen


def test_an_optimistic_transaction_fails_when_its_read_changed():
    store = Store()
    store.declare("t", False)
    store.apply(1, WriteSet([("t", b"a", b"1"), ("t", b"b", b"1")]))
    reads_a, reads_b, scans = store.begin(), store.begin(), store.begin()
    assert reads_a.get("t", b"a") == b"1"
    assert reads_b.get("t", b"b") == b"1"
    scans.scan("t")
    for transaction in (reads_a, reads_b, scans):
        transaction.put("t", b"c", b"2")
    store.apply(2, WriteSet([("t", b"a", b"9")]))
    for conflicting in (reads_a, scans):
        with pytest.raises(StoreError) as refused:
            conflicting.write_set()
        assert refused.value.code == "store.conflict"
    store.apply(3, reads_b.write_set())
    assert store.get("t", b"c") == b"2"


def test_a_log_table_is_append_only_and_gives_its_values_back_to_the_ledger():
    store = Store(100)
    store.declare("log", True)
    for version in range(1, 20):
        store.apply(version, WriteSet([("log", bytes([version]), bytes(20))]))
        store.commit(version)
    assert store.get("log", bytes([19])) == bytes(20)
    with pytest.raises(StoreError) as evicted:
        store.get("log", bytes([1]))
    assert evicted.value.code == "store.in_ledger"
    assert store.written_at("log", bytes([1])) == 1
    for change in ((("log", bytes([1]), b"x")), ("log", bytes([1]), None)):
        with pytest.raises(StoreError) as refused:
            store.apply(20, WriteSet([change]))
        assert refused.value.code == "store.log_is_append_only"
    assert store.latest == 19
    transaction = store.begin()
    with pytest.raises(StoreError):
        transaction.put("log", bytes([3]), b"x")


def test_uncommitted_log_values_stay_in_memory():
    store = Store(10)
    store.declare("log", True)
    store.apply(1, WriteSet([("log", b"a", bytes(100))]))
    store.apply(2, WriteSet([("log", b"b", bytes(100))]))
    assert store.get("log", b"a") == bytes(100)
    store.roll_back(1)
    assert store.get("log", b"b") is None
    store.commit(1)
    with pytest.raises(StoreError):
        store.get("log", b"a")


def test_limits_and_unknown_tables_are_refused_with_codes():
    store = Store()
    store.declare("t", False)
    transaction = store.begin()
    with pytest.raises(StoreError) as large:
        transaction.put("t", bytes(5000), b"")
    assert large.value.code == "store.too_large"
    with pytest.raises(StoreError) as unknown:
        transaction.put("nowhere", b"", b"")
    assert unknown.value.code == "store.no_table"
    with pytest.raises(StoreError) as kind:
        store.declare("t", True)
    assert kind.value.code == "store.bad_table"
    with pytest.raises(StoreError) as order:
        store.apply(5, WriteSet())
    assert order.value.code == "store.out_of_order"
