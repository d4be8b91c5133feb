"""What strangers and greedy callers cost the others: writes and memory of a network of three, quiet and under attack.

    python bench/attack.py [--scenarios pong,fee_history,...] [--rounds 2] [--seconds 8] [--out FILE]

Three nodes as processes. Four quiet participants pay at the primary, each one payment after the other, and wait for its
receipt; the attack comes over 30 connections from a process of its own with the lowest priority and a bounded rate,
because it shares the machine's cores with what it attacks. Quiet and attacked intervals take turns in one run: figures
are ratios within it. Memory is that of the attacked enclave: its most during an attack, less what it had before all.
Cores are those that the attacked enclave and the host take: on a busy machine they say more than the ratio.
Adds ``attack`` to bench/out/summary.json.
Scenarios are in bench/scenarios.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coco.cli.keys import make_actor
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.client.governance import Governance
from coco.client.http import HttpsClient
from coco.client.members import Member
from coco.client.verify import unverified_context
from coco.constitutions import text
from coco.ledger.statements import fingerprint
from ethereum import OUT, sign
from load import Connection, Target
from nodes import Network, network
from scenarios import ATTACKS, RUNTIMES, WRITERS, Attack, Peer, account, signed
from systems import CHAIN_ID, FUNDER, Coco, running

#: More than this and the run is ended: the machine has others on it.
MEMORY_MB_MAX = 4_000
PROPOSALS = 300


# --- the process of an attack ---------------------------------------------------------------------------------------


async def _attack(chosen: Attack, url: str, tls: ssl.SSLContext, seconds: float) -> Counter[str]:
    counted: Counter[str] = Counter()
    until = time.time() + seconds

    async def one(index: int) -> None:
        peer = Peer(url, tls, counted, index, until)
        while time.time() < until:
            try:
                await chosen.does(peer)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                counted["failed"] += 1
                await peer.close()
                await asyncio.sleep(0.01)
        await peer.close()

    tasks = [asyncio.create_task(one(index)) for index in range(chosen.connections)]
    await asyncio.wait(tasks, timeout=seconds + 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counted


def attacker() -> None:
    """The process of an attack: its arguments come as JSON, its figures go out as JSON."""
    os.nice(19)
    asked = json.loads(sys.argv[2])
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if asked["identity"]:
        tls.load_cert_chain(*asked["identity"])
    Peer.contracts = asked["contracts"]
    print(json.dumps(asyncio.run(_attack(ATTACKS[asked["name"]], asked["url"], tls, asked["seconds"]))))


# --- the quiet ones, and what they see -----------------------------------------------------------------------------


class Writers:
    """Participants that pay, one payment after the other each, until they are stopped."""

    def __init__(self, target: Target) -> None:
        self._target, self._stop = target, threading.Event()
        #: When each payment began and ended.
        self.done: list[tuple[float, float]] = []
        #: When the one began that each writer waits for.
        self.open: dict[int, float] = {}
        self.errors: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, index: int) -> None:
        _, secret = WELL_KNOWN_ACCOUNTS[index + 1]
        connection: Connection | None = None
        nonce = 0
        while not self._stop.is_set():
            fields = {"nonce": nonce, "gas": 21_000, "to": FUNDER, "value": 1, "chainId": CHAIN_ID}
            _, raw = sign((secret, fields))
            self.open[index] = began = time.monotonic()
            try:
                connection = connection or self._target.connect()
                connection.call("eth_sendRawTransactionSync", raw)
            except (OSError, RuntimeError) as error:
                self.errors[str(error)[:80]] += 1
                connection = None
                if "nonce" not in str(error) and "known" not in str(error):
                    time.sleep(0.2)
                    continue
            nonce += 1
            self.done.append((began, time.monotonic()))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Payments that ended within an interval, and the longest that any of it was waited for."""
        ended = [row for row in self.done if begin <= row[1] < end]
        waits = [min(stop, end) - start for start, stop in self.done if start < end and stop > begin]
        waits += [end - start for start in self.open.values() if start < end]
        return {"per_s": len(ended) / (end - begin), "worst_s": max(waits, default=end - begin)}

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=70)


class Memory:
    """The most that a process had since it was asked last."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most = pid, 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> float:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def _watch(self) -> None:
        while Path(f"/proc/{self._pid}").exists():
            self._most = max(self._most, self.now())
            if self._most > MEMORY_MB_MAX:
                os.kill(self._pid, 9)
            time.sleep(0.05)

    def take(self) -> float:
        most, self._most = max(self._most, self.now()), 0.0
        return most


class Work:
    """What a node takes of the machine's cores: its enclave, and the host process, which all nodes here share."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def now_s(self) -> float:
        """Seconds of a core so far."""
        ticks = 0
        for pid in self._pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Caller:
    """A quiet participant that asks something trivial ten times a second."""

    def __init__(self, target: Target) -> None:
        self._target, self._stop = target, threading.Event()
        self.done: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        connection = self._target.connect()
        while not self._stop.is_set():
            began = time.monotonic()
            connection.call("eth_call", {"to": FUNDER}, "latest")
            self.done.append((began, time.monotonic()))
            time.sleep(0.1)

    def between(self, begin: float, end: float) -> list[float]:
        """What calls that began within an interval have waited, in milliseconds, in order."""
        return sorted(1000 * (stop - start) for start, stop in self.done if begin <= start < end)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=70)


async def _contracts(target: Attacked) -> dict[str, str]:
    """Make one participant more, and with its certificate the contracts that its attacks want."""
    directory = target.system.directory
    certificate = make_actor(directory / "participants", "greedy")
    name = next(directory.glob("members/*.encryption.key.pem")).name.removesuffix(".encryption.key.pem")
    at = [directory / "members" / f"{name}{end}" for end in (".pem", ".key.pem", ".encryption.key.pem")]
    client = HttpsClient("localhost", urlsplit(target.url("administration")).port or 0, unverified_context())
    arguments = {"cert": certificate, "user_data": {"insecure_any_account": True}}
    try:
        message = Member.load(*at).sign("proposal", {"actions": [{"name": "set_user", "args": arguments}]})
        await Governance(client).send(message)
    finally:
        await client.close()
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.load_cert_chain(*target.identity("greedy"))
    await asyncio.sleep(1)
    connection = Target("localhost", urlsplit(target.url("application")).port or 0, tls).connect()
    found = {}
    for nonce, (does, runtime) in enumerate(RUNTIMES.items()):
        data = f"0x61{len(runtime) // 2:04x}80600a5f395ff3{runtime}"
        fields = {"nonce": nonce, "gas": 1_000_000, "data": data, "chainId": CHAIN_ID}
        receipt = connection.call("eth_sendRawTransactionSync", sign((account(0)[1], fields))[1])
        found[does] = receipt["contractAddress"]
    raw = signed(0, len(RUNTIMES), found["logs"], gas=4_000_000)
    found["block of logs"] = connection.call("eth_sendRawTransactionSync", raw)["blockNumber"]
    connection.close()
    return found


async def _open_proposals(url: str, directory: Path) -> int:
    """Make proposals that stay open; as many as members may have."""
    name = next(directory.glob("members/*.encryption.key.pem")).name.removesuffix(".encryption.key.pem")
    at = [directory / "members" / f"{name}{end}" for end in (".pem", ".key.pem", ".encryption.key.pem")]
    member = Member.load(*at)
    client = HttpsClient("localhost", urlsplit(url).port or 0, unverified_context())
    governance = Governance(client)
    made = 0
    try:
        rules = {"actions": [{"name": "set_constitution", "args": {"constitution": text("majority")}}]}
        await governance.send(member.sign("proposal", rules))
        for number in range(PROPOSALS):
            data = {"number": number, "text": "x" * 400}
            action = {
                "name": "set_member_data",
                "args": {"member_id": fingerprint(member.certificate), "member_data": data},
            }
            await governance.send(member.sign("proposal", {"actions": [action]}))
            made += 1
    except Exception as error:  # noqa: BLE001 - there is a limit: what was made is what there is
        print(f"  proposals: {made} ({error})", flush=True)
    finally:
        await client.close()
    return made


# --- measuring -----------------------------------------------------------------------------------------------------


class Attacked:
    """A network with its writers, and one node of it that is attacked."""

    def __init__(self, system: Coco) -> None:
        self.system, self.network = system, Network(system)
        leads = self.network.settled()
        self.name = next(name for name, leading in leads.items() if leading)
        self.row = self.network.nodes[self.name]
        self.memory = Memory(self.row["enclave_pid"])
        self.work = Work([self.row["enclave_pid"], system.summary["host_pid"]])
        self.writers = Writers(self.network.target(self.name))
        self.contracts: dict[str, str] = {}

    def url(self, listener: str) -> str:
        return self.row[f"{listener}_url"]

    def identity(self, caller: str) -> list[str]:
        """Certificate and key, if whoever attacks shows one."""
        at = self.system.directory / "participants"
        return {
            "stranger": [],
            "greedy": [str(at / "greedy.pem"), str(at / "greedy.key.pem")],
        }[caller]

    def begin(self, name: str, seconds: float) -> subprocess.Popen[str]:
        chosen = ATTACKS[name]
        asked = {
            "name": name,
            "url": self.url(chosen.listener),
            "seconds": seconds,
            "identity": self.identity(chosen.caller),
            "contracts": self.contracts,
        }
        command = [sys.executable, __file__, "--be", json.dumps(asked)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def measure(self, name: str, rounds: int, seconds: float) -> dict[str, Any]:
        """Quiet and attacked intervals in turn."""
        if ATTACKS[name].prepare == "proposals":
            asyncio.run(_open_proposals(self.url("administration"), self.system.directory))
        caller = None
        if ATTACKS[name].prepare == "contracts":
            self.contracts = asyncio.run(_contracts(self))
            caller = Caller(self.network.target(self.name))
        waits: list[float] = []
        rounds = ATTACKS[name].rounds or rounds
        time.sleep(2)
        base = self.memory.now()
        quiet, attacked, grown = [], [], []
        counted: Counter[str] = Counter()
        cores = {"quiet": 0.0, "attacked": 0.0}
        for _ in range(rounds):
            began, worked_s = time.monotonic(), self.work.now_s()
            time.sleep(seconds)
            cores["quiet"] += (self.work.now_s() - worked_s) / seconds / rounds
            quiet.append(self.writers.between(began, began + seconds))
            self.memory.take()
            process = self.begin(name, seconds + 1.5)
            time.sleep(1.5)  # until it has begun
            began, worked_s = time.monotonic(), self.work.now_s()
            time.sleep(seconds)
            cores["attacked"] += (self.work.now_s() - worked_s) / seconds / rounds
            attacked.append(self.writers.between(began, began + seconds))
            if caller is not None:
                waits += caller.between(began, began + seconds)
            said, _ = process.communicate(timeout=seconds + 90)
            counted.update(json.loads(said))
            grown.append(self.memory.take() - base)
            time.sleep(2)
        if caller is not None:
            caller.stop()
        waits.sort()
        per_s = [sum(row["per_s"] for row in rows) / rounds for rows in (quiet, attacked)]
        return {
            "quiet_per_s": round(per_s[0], 1),
            "attacked_per_s": round(per_s[1], 1),
            "ratio": round(per_s[1] / per_s[0], 2) if per_s[0] else 0.0,
            "quiet_worst_ms": round(1000 * max(row["worst_s"] for row in quiet)),
            "attacked_worst_ms": round(1000 * max(row["worst_s"] for row in attacked)),
            "memory_grown_mb": round(max(grown)),
            # Of the attacked enclave and of the host: writes that are not made are no work either.
            "cores": {name: round(value, 2) for name, value in cores.items()},
            **({"call_median_ms": round(waits[len(waits) // 2]), "call_worst_ms": round(waits[-1])} if waits else {}),
            "attacker": dict(counted),
        }


@contextlib.contextmanager
def attacked() -> Iterator[Attacked]:
    with running(network(3)) as system:
        found = Attacked(system)
        try:
            yield found
        finally:
            found.writers.stop()


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        attacker()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(ATTACKS), help="comma between them; all without it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", default=str(OUT / "summary.json"))
    chosen = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in chosen.scenarios.split(","):
        try:
            with attacked() as target:  # a network of its own: no attack pays for another's
                found[name] = target.measure(name, chosen.rounds, chosen.seconds)
                if target.writers.errors:
                    found[name]["errors"] = dict(target.writers.errors)
        except (RuntimeError, ZeroDivisionError, ValueError, subprocess.TimeoutExpired) as error:
            found[name] = {"failed": str(error)}
        print(f"{name}: {found[name]}", flush=True)
    path = Path(chosen.out)
    path.parent.mkdir(exist_ok=True)
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, "attack": {**others.get("attack", {}), **found}}, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
