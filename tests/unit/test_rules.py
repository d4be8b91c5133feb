"""Rules that run away are refused, not waited for; and the constitutions that ship decide as they say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coco import constitutions
from coco.enclave.platform import rules_worker
from coco.errors import GovernanceError

#: The worker as the enclave forks it, in a process of its own: lock-down is for ever.
_PROGRAM = """
import asyncio, json, sys
from coco.enclave.platform import lockdown, rules_worker
base = rules_worker.size()
lockdown.isolate()
rules = None
async def main():
    rules = rules_worker.Rules(worker)
    answers = []
    for source, function, arguments in json.loads(sys.argv[1]):
        try:
            answers.append(await rules.call(source, function, *arguments))
        except Exception as error:
            answers.append([type(error).__name__, getattr(error, "code", ""), str(error)])
    print(json.dumps(answers))
worker = rules_worker.fork(base, lockdown.seal)
asyncio.run(main())
"""

RUNAWAYS = {
    "an endless loop": "def f():\n    for i in range(1 << 60):\n        pass\n",
    "a long string": 'def f():\n    return len("a" * 300000000)\n',
    "a long list": "def f():\n    return len([0] * 400000000)\n",
    "a doubling list": "def f():\n    x = [0]\n    for i in range(64):\n        x = x + x\n    return len(x)\n",
    "a huge power": "def f():\n    x = 3\n    for i in range(40):\n        x = x * x\n    return x % 7\n",
    "a huge shift": "def f():\n    return (1 << 4000000000) % 7\n",
    "deep recursion": "def f():\n    return f()\n",
    "deep nesting": "def f():\n    return " + "[" * 5000 + "]" * 5000 + "\n",
    "a failure": "def f():\n    fail('on purpose')\n",
    "no such function": "def g():\n    return 1\n",
    "no syntax": "def f(\n",
    "a value that is no JSON": "def f():\n    return f\n",
}


def ask(*calls: Any) -> list[Any]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(calls)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rules_that_run_away_are_refused_and_the_next_call_is_served():
    calls: list[tuple[str, str, list[Any]]] = [(source, "f", []) for source in RUNAWAYS.values()]
    *answers, last = ask(*calls, ("def f(x):\n    return x + 1\n", "f", [1]))
    assert last == 2
    for name, answer in zip(RUNAWAYS, answers, strict=True):
        assert answer[0] == "GovernanceError", (name, answer)
        assert answer[1] in ("gov.rules_too_long", "gov.rules_out_of_memory", "gov.rules_failed"), (name, answer)
    assert "constitution:2" in answers[list(RUNAWAYS).index("a failure")][2], "the line is named"


def test_rules_see_no_file_no_clock_and_nothing_of_the_call_before():
    sources = [
        'def f():\n    return open("/etc/passwd")\n',
        'load("os", "x")\ndef f():\n    return x\n',
        "def f():\n    return time()\n",
        "def f():\n    return __import__('os')\n",
    ]
    for answer in ask(*((source, "f", []) for source in sources)):
        assert answer[:2] == ["GovernanceError", "gov.rules_failed"]
    assert ask(("x = [1]\ndef f():\n    return x\n", "f", []), ("def f():\n    return x\n", "f", []))[1][1] == (
        "gov.rules_failed"
    )


def state(active: int, *, production: bool = False) -> dict[str, Any]:
    members = {f"m{number}": {"status": "Active"} for number in range(active)}
    trusted = {f"n{number}": {"status": "Trusted"} for number in range(6)}
    return {
        "members": {**members, "gone": {"status": "Retired"}},
        "nodes": trusted,
        "settings": {"production": production},
    }


@pytest.mark.parametrize(
    ("name", "votes", "active", "decision"),
    [
        ("majority", "", 3, "Open"),
        ("majority", "y", 3, "Open"),
        ("majority", "yy", 3, "Accepted"),
        ("majority", "ynn", 3, "Rejected"),
        ("majority", "yy", 4, "Open"),
        ("majority", "yynn", 4, "Rejected"),
        ("majority", "y", 1, "Accepted"),
        ("unanimous", "yy", 3, "Open"),
        ("unanimous", "yyy", 3, "Accepted"),
        ("unanimous", "n", 3, "Rejected"),
        ("sandbox", "", 3, "Accepted"),
        ("m-of-n", "y", 4, "Open"),
        ("m-of-n", "yy", 4, "Accepted"),
        ("m-of-n", "nn", 4, "Open"),
        ("m-of-n", "nnn", 4, "Rejected"),
        ("operator", "y", 3, "Open"),
        ("operator", "yy", 3, "Accepted"),
        ("operator", "nn", 3, "Rejected"),
    ],
)
def test_the_constitutions_that_ship_decide_as_they_say(name, votes, active, decision):
    source = constitutions.text(name)
    cast = {f"m{number}": vote == "y" for number, vote in enumerate(votes)}
    proposal = {"proposer": "m0", "actions": [{"name": "remove_user", "args": {"user_id": "x"}}]}

    def call(function: str, *arguments: Any) -> Any:
        answer = rules_worker.call(source, function, list(arguments))
        assert "value" in answer, answer
        return answer["value"]

    assert call("resolve", proposal, cast, state(active)) == decision
    # A vote of somebody who is no active member counts for nothing.
    assert call("resolve", proposal, {**cast, "gone": True, "other": True}, state(active)) == decision
    assert call("validate", proposal, state(active)) is None
    assert call("apply", proposal, state(active)) == proposal["actions"]


def test_under_the_operators_rules_one_member_trusts_nodes_up_to_a_number():
    source = constitutions.text("operator")

    def resolve(proposer: str, *names: str) -> str:
        actions = [{"name": name, "args": {"node_id": "x"}} for name in names]
        answer = rules_worker.call(source, "resolve", [{"proposer": proposer, "actions": actions}, {}, state(3)])
        return answer["value"]

    assert resolve("m0", "transition_node_to_trusted") == "Accepted"
    assert resolve("m0", "transition_node_to_trusted", "remove_node") == "Accepted"
    assert resolve("m0", "transition_node_to_trusted", "transition_node_to_trusted") == "Open", "one too many"
    assert resolve("m0", "transition_node_to_trusted", "add_virtual_measurement") == "Open"
    assert resolve("gone", "transition_node_to_trusted") == "Open"


def test_the_sandboxs_rules_refuse_production():
    source = constitutions.text("sandbox")
    assert rules_worker.call(source, "validate", [{"actions": []}, state(1, production=True)])["value"]
    assert rules_worker.call(source, "resolve", [{"actions": []}, {}, state(1, production=True)])["value"] == "Rejected"
    for name in constitutions.NAMES:
        assert Path(constitutions.__file__).with_name(f"{name}.star").read_text() == constitutions.text(name)
    with pytest.raises(KeyError):
        constitutions.text("../majority")


def test_a_worker_that_is_gone_is_said():
    import socket

    async def story() -> None:
        ours, theirs = socket.socketpair()
        rules = rules_worker.Rules(ours)
        theirs.close()
        with pytest.raises(GovernanceError) as gone:
            await rules.call("def f():\n    return 1\n", "f")
        assert gone.value.code == "gov.rules_gone"
        ours.close()

    asyncio.run(story())


def test_a_call_that_is_given_up_leaves_no_answer_for_the_next():
    import json
    import socket
    import struct

    async def story() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        rules, loop = rules_worker.Rules(ours), asyncio.get_running_loop()

        async def answer(value: Any) -> None:
            await loop.sock_recv(theirs, 65536)
            body = json.dumps({"value": value}).encode()
            await loop.sock_sendall(theirs, struct.pack("!I", len(body)) + body)

        left = asyncio.ensure_future(rules.call("", "first"))
        await asyncio.sleep(0.01)
        left.cancel()
        following = asyncio.ensure_future(rules.call("", "second"))
        await answer(1)
        await answer(2)
        assert await following == 2 and left.cancelled()
        ours.close()
        theirs.close()

    asyncio.run(story())


def test_a_worker_that_does_not_answer_is_asked_no_more(monkeypatch):
    import socket

    monkeypatch.setattr(rules_worker, "_TIMEOUT_S", 0.1)

    async def story() -> None:
        ours, theirs = socket.socketpair()
        rules = rules_worker.Rules(ours)
        for _ in range(2):
            with pytest.raises(GovernanceError) as gone:
                await rules.call("", "f")
            assert gone.value.code == "gov.rules_gone"
        ours.close()
        theirs.close()

    asyncio.run(story())
