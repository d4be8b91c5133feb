"""A forger with the service's key and every node's: one edit of a ledger for each seed, and everything after it signed anew.

Whatever the auditor accepts is given to a second, small model of what is legal (``legal.py``); what that calls illegal
is a forgery that passed. Beside it, how many of the same the independent ``ccf`` reader accepts, which checks
signatures and not what is signed.

    python tests/adversary/forger.py --seeds 0-9999 --jobs 2 [--ccf 500]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "adversary")]

import legal  # noqa: E402

import consortium  # noqa: E402
from coco._native import Entry as Sealed  # noqa: E402
from coco._native import MerkleTree  # noqa: E402
from coco.audit import Auditor  # noqa: E402
from coco.audit.rows import Written  # noqa: E402
from coco.configuration import nodes  # noqa: E402
from coco.crypto.certificates import pem  # noqa: E402
from coco.enclave.keys.identity import ServiceIdentity  # noqa: E402
from coco.ledger import tables  # noqa: E402
from coco.ledger.chunks import write_chunk  # noqa: E402
from coco.ledger.transaction_id import TransactionId  # noqa: E402
from consortium import Consortium, Entry, Row, Signing  # noqa: E402

SINGLETON = tables.SINGLETON
#: Entries that follow an edit at most, unless all do: proposals and statements name the root of what was before them,
#: so that whole ledgers are the easier part for an auditor.
_FOLLOW_MAX = 8
_CCF = ROOT / ".venv-ccf" / "bin" / "python"


@dataclass
class Forgery:
    """What a seed gave."""

    seed: int
    kind: str
    entry: int
    #: Why it was refused, and where; empty: it was accepted.
    refused: str = ""
    refused_at: int = 0
    #: Why an accepted one is illegal; empty: it is legal.
    illegal: str = ""


@dataclass
class Summary:
    """All of them."""

    made: int = 0
    refused: int = 0
    refused_there: int = 0
    accepted_legal: int = 0
    accepted_illegal: list[Forgery] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    legal_kinds: Counter[str] = field(default_factory=Counter)
    ccf_given: int = 0
    ccf_accepted: int = 0

    def add(self, found: Forgery) -> None:
        self.made += 1
        self.kinds[found.kind] += 1
        if found.refused:
            self.refused += 1
            self.refused_there += found.refused_at <= found.entry
            self.codes[found.refused.rpartition("(")[2].rstrip(")")[:40]] += 1
        elif found.illegal:
            self.accepted_illegal.append(found)
        else:
            self.accepted_legal += 1
            self.legal_kinds[found.kind] += 1


class Forger:
    """Ledgers, their keys, and the auditor's state before each entry."""

    def __init__(self, made: Consortium) -> None:
        self.made = made
        self.before: list[Auditor] = []
        self._tree = MerkleTree()
        auditor = Auditor(consortium.call, self._tree)

        async def feed() -> None:
            for data in made.sealed:
                self.before.append(auditor.fork(self._tree))
                await auditor.feed(Written.parse(data))
                self._tree.append(Sealed.parse(data).leaf)

        asyncio.run(feed())
        assert auditor.violations == [], auditor.violations
        self.primaries = self._primaries()

    def _primaries(self) -> list[str]:
        """Who would sign behind each entry."""
        found, last = [], ""
        for entry in self.made.entries:
            last = entry.signing.node if entry.signing else last
            if any(
                table == tables.SERVICE_INFO and b'"Recovering"' in (value or b"") for table, _, value in entry.rows
            ):
                last = next(
                    key.decode()
                    for table, key, value in entry.rows
                    if table == tables.NODES_INFO and json.loads(value or b"{}")["status"] == nodes.TRUSTED
                )
            found.append(last)
        return found

    def forge(self, seed: int) -> tuple[Forgery, list[bytes]]:
        """The forgery of a seed, judged; and its entries, from the edited one on, as far as they were needed."""
        chance = random.Random(seed)
        made = self.made
        at = chance.randrange(1, len(made.entries) + 1)
        upto = (
            len(made.entries) if chance.random() < 0.1 else min(len(made.entries), at + chance.randrange(_FOLLOW_MAX))
        )
        edit = Edit(chance, self, at, upto)
        kind, entries = edit.make()
        if entries[-1].signing is None:
            entries.append(self._closing(entries[-1], upto))
        found = Forgery(seed, kind, at)
        sealed = self._judge(found, at, entries)
        if not found.refused:
            whole = [*made.sealed[: at - 1], *sealed]
            found.illegal = legal.why_illegal(whole)
        return found, sealed

    def _closing(self, last: Entry, upto: int) -> Entry:
        known = [entry.signing.time_s for entry in self.made.entries[:upto] if entry.signing]
        later = [entry.signing.time_s for entry in self.made.entries[upto:] if entry.signing]
        signing = Signing(self.primaries[upto - 1], later[0] if later else known[-1] + 2, TransactionId(0, 0))
        return Entry(last.view, signing=signing, service=self._service(last))

    def _service(self, last: Entry) -> str:
        """Whose key signs behind an entry."""
        info = last.public().get((tables.SERVICE_INFO, SINGLETON))
        try:
            named = json.loads(info or b"{}").get("cert", last.service)
            return named if named in self.made.keys.services else last.service
        except (ValueError, AttributeError):
            return last.service

    def _judge(self, found: Forgery, at: int, entries: Sequence[Entry]) -> list[bytes]:
        """Seal, sign and feed one entry after the other, until one is refused."""
        tree, leaves = self._tree, [self._tree.leaf(n) or b"" for n in range(at, len(self._tree))]
        tree.truncate(at)
        auditor, sealed = self.before[at - 1].fork(tree), []

        def certificate_of(node: str) -> str:
            shown = auditor.state.rows.get(tables.NODE_CERTIFICATES, node.encode())
            return (shown or self.made.keys.nodes[node].certificate.encode()).decode("ascii", "replace")

        async def feed() -> None:
            for seqno, entry in enumerate(entries, at):
                try:
                    data, leaf = consortium.seal(self.made.keys, tree, seqno, entry, certificate_of)
                except Exception as error:  # what cannot be sealed, signed or parsed is no ledger
                    found.refused, found.refused_at = f"not sealed: {error} (forger.impossible)", seqno
                    return
                await auditor.feed(Written.parse(data))
                if auditor.violations:
                    found.refused, found.refused_at = auditor.violations[0]["why"], seqno
                    return
                tree.append(leaf)
                sealed.append(data)

        try:
            asyncio.run(feed())
        finally:
            tree.truncate(at)
            for leaf in leaves:
                tree.append(leaf)
        return sealed

    def whole(self, seed: int) -> list[bytes]:
        """The whole forged ledger of a seed, accepted or not; nothing where it cannot even be sealed."""
        chance = random.Random(seed)
        made = self.made
        at = chance.randrange(1, len(made.entries) + 1)
        upto = (
            len(made.entries) if chance.random() < 0.1 else min(len(made.entries), at + chance.randrange(_FOLLOW_MAX))
        )
        _, entries = Edit(chance, self, at, upto).make()
        if entries[-1].signing is None:
            entries.append(self._closing(entries[-1], upto))
        tree = MerkleTree()
        sealed = made.sealed[: at - 1]
        rows = dict(self.before[at - 1].state.rows.by_table.get(tables.NODE_CERTIFICATES, {}))
        for data in sealed:
            tree.append(Sealed.parse(data).leaf)
        for seqno, entry in enumerate(entries, at):
            shown = lambda node: (rows.get(node.encode()) or made.keys.nodes[node].certificate.encode()).decode()  # noqa: E731
            try:
                data, leaf = consortium.seal(made.keys, tree, seqno, entry, shown)
            except Exception:
                return []
            tree.append(leaf)
            sealed = [*sealed, data]
            for (table, key), value in entry.public().items():
                if table == tables.NODE_CERTIFICATES and value is not None:
                    rows[key] = value
        return sealed


class Edit:
    """One edit at an entry; what comes after it stays as it was, up to an entry."""

    def __init__(self, chance: random.Random, forger: Forger, at: int, upto: int) -> None:
        self.chance, self.forger, self.at, self.upto = chance, forger, at, upto
        self.entries = forger.made.entries
        self.entry = self.entries[at - 1]
        self.rows = forger.before[at - 1].state.rows

    def make(self) -> tuple[str, list[Entry]]:
        """What was done, and the entries from there on."""
        kinds: list[Callable[[], list[Entry] | None]] = [
            *(self.drop_entry, self.repeat_entry, self.swap_entries, self.copy_entry, self.change_view),
            *(self.add_row, self.add_removal, self.add_table, self.add_sealed, self.forge_entry, self.forge_entry),
        ]
        if self.entry.signing is not None:
            kinds += [self.other_signer, self.other_time, self.other_commit, self.signature_row, self.signature_row]
        else:
            kinds += 2 * [self.flip_value, self.change_json, self.change_json, self.other_value, self.reissue]
            kinds += [self.drop_row, self.remove_row, self.other_key, self.drop_sealed]
        while True:
            kind = self.chance.choice(kinds)
            found = kind()
            if found is not None:
                return kind.__name__, found

    def _with(self, *entries: Entry) -> list[Entry]:
        return [*entries, *self.entries[self.at : self.upto]]

    def _rows(self, edit: Callable[[list[Row]], list[Row]]) -> list[Entry]:
        return self._with(replace(self.entry, rows=tuple(edit(list(self.entry.rows)))))

    def _public(self) -> list[int]:
        return [n for n, row in enumerate(self.entry.rows) if row[0].startswith("public:")]

    def _pick(self) -> int | None:
        there = [n for n in self._public() if self.entry.rows[n][2] is not None]
        return self.chance.choice(there) if there else None

    def _set(self, number: int, value: bytes | None) -> list[Entry]:
        table, key, _ = self.entry.rows[number]

        def edit(rows: list[Row]) -> list[Row]:
            rows[number] = (table, key, value)
            return rows

        return self._rows(edit)

    # --- rows ---

    def flip_value(self) -> list[Entry] | None:
        number = self._pick()
        if number is None:
            return None
        value = bytearray(self.entry.rows[number][2] or b"")
        if not value:
            return None
        value[self.chance.randrange(len(value))] ^= 1 << self.chance.randrange(8)
        return self._set(number, bytes(value))

    def change_json(self) -> list[Entry] | None:
        number = self._pick()
        if number is None:
            return None
        changed = self._json(self.entry.rows[number][2] or b"")
        return self._set(number, changed) if changed is not None else None

    def _json(self, value: bytes) -> bytes | None:
        try:
            document = json.loads(value)
        except ValueError:
            return None
        places: list[tuple[Any, Any]] = []

        def walk(one: Any) -> None:
            for key in one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ():
                places.append((one, key))
                walk(one[key])

        walk(document)
        if not places:
            return tables.row(self._other(document))
        where, key = self.chance.choice(places)
        if isinstance(where, dict) and self.chance.random() < 0.15:
            del where[key]
        elif isinstance(where, dict) and self.chance.random() < 0.1:
            where["another"] = where[key]
        else:
            where[key] = self._other(where[key])
        changed = tables.row(document)
        return changed if changed != value else None

    def _other(self, value: Any) -> Any:
        known: list[Any] = [True, False, None, 0, 1, 2, "", "Open", "Accepted", "Trusted", "Retired", "Active", {}, []]
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value + self.chance.choice([-1, 1, 10, -value, 1 << 40])
        if isinstance(value, str) and value and self.chance.random() < 0.7:
            at = self.chance.randrange(len(value))
            letters = "0123456789abcdef" if value[at] in "0123456789abcdef" else "ABCXYZ+/="
            return value[:at] + self.chance.choice(letters) + value[at + 1 :]
        return self.chance.choice(known)

    def other_value(self) -> list[Entry] | None:
        """The value of another row of the table, of any time."""
        number = self._pick()
        if number is None:
            return None
        table, _, now = self.entry.rows[number]
        known = [v for entry in self.entries for t, _, v in entry.rows if t == table and v is not None and v != now]
        return self._set(number, self.chance.choice(known)) if known else None

    def drop_row(self) -> list[Entry] | None:
        there = self._public()
        if not there:
            return None
        number = self.chance.choice(there)
        return self._rows(lambda rows: rows[:number] + rows[number + 1 :])

    def remove_row(self) -> list[Entry] | None:
        number = self._pick()
        return self._set(number, None) if number is not None else None

    def other_key(self) -> list[Entry] | None:
        there = self._public()
        if not there:
            return None
        number = self.chance.choice(there)
        table, key, value = self.entry.rows[number]
        known = [k for k, _ in self.rows.scan(table) if k != key] or [key + b"x"]
        other = self.chance.choice(known)

        def edit(rows: list[Row]) -> list[Row]:
            kept = [row for row in rows if (row[0], row[1]) != (table, other)]
            return [(table, other, value) if row[:2] == (table, key) else row for row in kept]

        return self._rows(edit)

    def add_row(self) -> list[Entry] | None:
        """A row of another entry, or of now, once more."""
        known = [row for entry in self.entries for row in entry.rows if row[0].startswith("public:")]
        table, key, value = self.chance.choice(known)
        if (table, key) in self.entry.public():
            return None
        return self._rows(lambda rows: [*rows, (table, key, value)])

    def add_removal(self) -> list[Entry] | None:
        table = self.chance.choice(sorted(self.rows.by_table) or [tables.MEMBERS_INFO])
        keys = [key for key, _ in self.rows.scan(table)]
        if not keys:
            return None
        key = self.chance.choice(keys)
        if (table, key) in self.entry.public():
            return None
        return self._rows(lambda rows: [*rows, (table, key, None)])

    def add_table(self) -> list[Entry] | None:
        name = self.chance.choice(
            ["public:no.such", "public:ccf.gov.no_such", "public:coco.internal.no_such", "public:"]
        )
        return self._rows(lambda rows: [*rows, (name, b"x", b"y")])

    def add_sealed(self) -> list[Entry] | None:
        if any(not table.startswith("public:") for table, _, _ in self.entry.rows):
            return self._with(replace(self.entry, claims=bytes([self.chance.randrange(1, 256)]) * 32))
        if self.chance.random() < 0.5:
            return self._with(replace(self.entry, claims=b"\1" * 32))
        return self._rows(lambda rows: [*rows, ("private", b"k", b"v")])

    def drop_sealed(self) -> list[Entry] | None:
        kept = [row for row in self.entry.rows if row[0].startswith("public:")]
        return self._rows(lambda rows: kept) if len(kept) < len(self.entry.rows) else None

    def reissue(self) -> list[Entry] | None:
        """A certificate that the service's key signed, for somebody or something else."""
        there = [
            n for n in self._public() if self.entry.rows[n][0] == tables.NODE_CERTIFICATES and self.entry.rows[n][2]
        ]
        if not there:
            return None
        number = self.chance.choice(there)
        former = x509.load_pem_x509_certificate(self.entry.rows[number][2] or b"")
        service = self.forger.made.keys.services[self.forger._service(self.entry)]
        key: Any = former.public_key()
        engine, names, days, evidence = 1, consortium.NAMES, 7, b""
        what = self.chance.randrange(5)
        if what == 0:
            key = self.chance.choice(list(self.forger.made.keys.nodes.values())).key.public_key()
        elif what == 1:
            engine = 99
        elif what == 2:
            names = ["bank.example"]
        elif what == 3:
            days = 3000
        else:
            service = ServiceIdentity.generate(0)
        now_ms = int(former.not_valid_before_utc.timestamp() + 3600) * 1000
        made = service.endorse(key, engine, names, now_ms, days, evidence)
        return self._set(number, pem(made).encode())

    # --- entries ---

    def drop_entry(self) -> list[Entry] | None:
        rest = self.entries[self.at : self.upto]
        return list(rest) if rest else None

    def repeat_entry(self) -> list[Entry] | None:
        return self._with(self.entry, self.entry)

    def swap_entries(self) -> list[Entry] | None:
        if self.at >= self.upto:
            return None
        following = self.entries[self.at]
        return [following, self.entry, *self.entries[self.at + 1 : self.upto]]

    def copy_entry(self) -> list[Entry] | None:
        other = self.chance.choice(self.entries)
        return self._with(replace(other, view=self.entry.view, service=self.entry.service), self.entry)

    def change_view(self) -> list[Entry] | None:
        by = self.chance.choice([-1, 1, 2, 1000])
        if self.entry.view + by < 1:
            return None
        first = replace(self.entry, view=self.entry.view + by)
        if self.chance.random() < 0.5:
            return self._with(first)
        return [replace(one, view=one.view + by) for one in self.entries[self.at - 1 : self.upto]]

    def forge_entry(self) -> list[Entry] | None:
        """An entry that a node with other code could write, before this one."""
        rows = self.chance.choice(
            [self._stranger, self._keeper, self._status, self._rules, self._retirement, self._life]
        )()
        if not rows:
            return None
        return self._with(Entry(self.entry.view, tuple(rows), service=self.entry.service), self.entry)

    def _node(self) -> tuple[bytes, dict[str, Any]] | None:
        known = [(key, json.loads(value)) for key, value in self.rows.scan(tables.NODES_INFO)]
        return self.chance.choice(known) if known else None

    def _stranger(self) -> list[Row]:
        """A node that is nobody's: the row of another one, changed a little, with a certificate."""
        found = self._node()
        if found is None:
            return []
        node = self.chance.choice(list(self.forger.made.keys.nodes.values()))
        engine = nodes.next_engine(self.rows)
        row = {**found[1], "status": "Trusted", "engine": engine, "retired_committed": False}
        row["encryption_pub_key"] = node.encryption.pem
        if self.chance.random() < 0.5:
            evidence = consortium.report(node, self.forger.made.keys.services[self.entry.service].spki)
            row |= {"quote_info": {"format": evidence.platform, **evidence.to_json()}}
            row |= {"verified": evidence.verify(now_s=0).to_json()}
        service = self.forger.made.keys.services[self.entry.service]
        time_s = self.forger.before[self.at - 1].state.time_s
        said = nodes.wrapped_evidence(row)
        issued = service.endorse(node.key.public_key(), engine, row["host_names"], 1000 * time_s, evidence=said)
        name = node.id.encode()
        return [(tables.NODES_INFO, name, tables.row(row)), (tables.NODE_CERTIFICATES, name, pem(issued).encode())]

    def _keeper(self) -> list[Row]:
        """Another epoch, kept for one member alone."""
        row = self.rows.document(tables.WRAPPED_SECRET)
        if not row:
            return []
        some = sorted(row.get("encrypted_shares", {}))[: self.chance.randrange(3)]
        for part in ("encrypted_shares", "share_commitments"):
            row[part] = {name: row[part][name] for name in some if name in row.get(part, {})}
        return [(tables.WRAPPED_SECRET, SINGLETON, tables.row(row))]

    def _status(self) -> list[Row]:
        info = self.rows.document(tables.SERVICE_INFO)
        statuses = ["Opening", "Open", "Recovering", "WaitingForRecoveryShares"]
        return [(tables.SERVICE_INFO, SINGLETON, tables.row({**info, "status": self.chance.choice(statuses)}))]

    def _rules(self) -> list[Row]:
        table = self.chance.choice([tables.CONSTITUTION, tables.SERVICE_CONFIG, tables.USERS_INFO, tables.OPERATORS])
        return [(table, SINGLETON, self.chance.choice([b'""', b"{}", b'{"cert":"","addresses":["10.0.0.1"]}']))]

    def _retirement(self) -> list[Row]:
        found = self._node()
        if found is None:
            return []
        row = {**found[1], "status": "Retired", "retired_committed": self.chance.random() < 0.5}
        if self.chance.random() < 0.5:
            row["retire_statement"] = row["owner_statement"]
        return [(tables.NODES_INFO, found[0], tables.row(row))]

    def _life(self) -> list[Row]:
        """The service's own key, and nobody's statement: the service becomes another."""
        info = self.rows.document(tables.SERVICE_INFO)
        other = pem(ServiceIdentity.generate(1000 * self.forger.before[self.at - 1].state.time_s).certificate)
        status = self.chance.choice(["Open", "Recovering"])
        after = {
            **info,
            "cert": other,
            "status": status,
            "previous_service_identity": info.get("cert", ""),
            "since": self.at,
        }
        return [(tables.SERVICE_INFO, SINGLETON, tables.row(after))]

    # --- signatures ---

    def _signed(self, **other: Any) -> list[Entry]:
        assert self.entry.signing is not None
        return self._with(replace(self.entry, signing=replace(self.entry.signing, **other)))

    def other_signer(self) -> list[Entry] | None:
        assert self.entry.signing is not None
        others = [node for node in self.forger.made.keys.nodes if node != self.entry.signing.node]
        return self._signed(node=self.chance.choice(others))

    def other_time(self) -> list[Entry] | None:
        assert self.entry.signing is not None
        by = self.chance.choice([-1, 1, -3600, 3600, -(10**6), 10**6, 10**8])
        return self._signed(time_s=max(0, self.entry.signing.time_s + by))

    def other_commit(self) -> list[Entry] | None:
        place = TransactionId(self.chance.randrange(1, 12), self.chance.randrange(0, self.at + 10))
        return self._signed(committed=place)

    def signature_row(self) -> list[Entry] | None:
        """The rows of a signature, with a bit or a word of them changed."""
        writes = Sealed.parse(self.forger.made.sealed[self.at - 1]).public_writes()
        rows: list[Row] = [(t, k, v) for t in writes.tables() for k, v in writes.rows(t)]
        number = self.chance.choice([n for n, row in enumerate(rows) if row[0] != tables.PREDECESSOR])
        table, key, value = rows[number]
        changed = self._json(value or b"") if self.chance.random() < 0.5 else None
        if changed is None:
            flipped = bytearray(value or b"")
            flipped[self.chance.randrange(len(flipped))] ^= 1 << self.chance.randrange(8)
            changed = bytes(flipped)
        rows[number] = (table, key, changed)
        return self._with(Entry(self.entry.view, tuple(rows), service=self.entry.service))


# --- campaigns ---

_forger: Forger | None = None


def _begin(rules: str) -> None:
    global _forger
    _forger = Forger(consortium.eventful(Path(tempfile.mkdtemp(prefix="coco-forger-"))))


def _some(seeds: Sequence[int]) -> list[Forgery]:
    assert _forger is not None
    return [_forger.forge(seed)[0] for seed in seeds]


def _ccf(seeds: Sequence[int]) -> tuple[int, int]:
    """How many of these forgeries there are, and how many of them the ``ccf`` package accepts."""
    assert _forger is not None
    with tempfile.TemporaryDirectory(prefix="coco-forger-") as folder:
        given = 0
        for seed in seeds:
            sealed = _forger.whole(seed)
            if sealed:
                given += 1
                directory = Path(folder) / str(seed)
                directory.mkdir()
                write_chunk(directory, 1, sealed)
        done = subprocess.run(
            [_CCF, str(ROOT / "tests" / "verify_with_ccf.py"), "--each", folder], capture_output=True, text=True
        )
        return given, int(done.stdout.split()[-1])


def campaign(seeds: Sequence[int], jobs: int, ccf: int = 0, say: Callable[[str], None] = lambda text: None) -> Summary:
    """Make and judge the forgeries of many seeds; ``ccf`` judges the first so many, too."""
    summary = Summary()
    batches = [seeds[at : at + 50] for at in range(0, len(seeds), 50)]
    with ProcessPoolExecutor(jobs, initializer=partial(_begin, "majority")) as pool:
        for found in pool.map(_some, batches):
            for one in found:
                summary.add(one)
            say(f"{summary.made} of {len(seeds)}, {len(summary.accepted_illegal)} illegal ones accepted")
        some = seeds[:ccf]
        for given, accepted in pool.map(_ccf, [some[at : at + 50] for at in range(0, len(some), 50)]):
            summary.ccf_given += given
            summary.ccf_accepted += accepted
    return summary


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-9999")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ccf", type=int, default=0, help="give the first so many to the ccf package, too")
    chosen = parser.parse_args()
    first, _, last = chosen.seeds.partition("-")
    seeds = list(range(int(first), int(last or first) + 1))
    began = time.monotonic()
    found = campaign(seeds, chosen.jobs, chosen.ccf, lambda text: print(text, file=sys.stderr))
    print(
        f"{found.made} edits in {time.monotonic() - began:.0f} s: {found.refused} refused ({found.refused_there} at the edited entry)"
    )
    print(f"  {found.accepted_legal} accepted and legal: {dict(found.legal_kinds.most_common())}")
    print(f"  {len(found.accepted_illegal)} accepted and illegal")
    print(f"  kinds: {dict(found.kinds.most_common())}")
    print(f"  refused for: {dict(found.codes.most_common(30))}")
    if found.ccf_given:
        print(f"  ccf accepts {found.ccf_accepted} of {found.ccf_given} of them")
    for one in found.accepted_illegal[:50]:
        print(f"  seed {one.seed}: {one.kind} at entry {one.entry}: {one.illegal}")
    sys.exit(1 if found.accepted_illegal else 0)


if __name__ == "__main__":
    main()
