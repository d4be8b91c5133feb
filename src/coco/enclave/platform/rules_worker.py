"""Where rules run: a process that is forked before the enclave's second lock-down, and forks once for every call.

Rules:

* Rules are written by members, who may be malicious: a call gets JSON and gives JSON, and nothing of it outlives it.
* Steps are counted, so a loop ends at the same place everywhere; memory has a hard limit, because the interpreter can
  be stopped in a loop but not in ``"a" * 300000000``. What dies says nothing but that it died.
* Only a primary calls rules, and what they gave is recorded: a limit never makes two nodes disagree.
* The process is locked down like the enclave, but for forking; it holds no key and knows no state but what it is given.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

import starlark

from coco.enclave.platform import forked
from coco.errors import GovernanceError

#: Memory of one call beyond what the process has, its processor time as a second net, and about a thousand steps each.
_MEMORY_BYTES, _CPU_SECONDS, _THOUSANDS_OF_STEPS = 256 << 20, 10, 20_000
_STACK = 200
ANSWER_BYTES_MAX = 4 << 20
_TIMEOUT_S = 20.0


class _TooLong(Exception):
    pass


def call(source: str, function: str, arguments: list[Any]) -> dict[str, Any]:
    """Run one function of a constitution here; the answer as it goes back."""
    steps = 0

    def cancelled() -> bool:
        nonlocal steps
        steps += 1
        if steps > _THOUSANDS_OF_STEPS:
            raise _TooLong
        return False

    options = starlark.EvalOptions(check_cancelled=cancelled, max_callstack_size=_STACK)
    try:
        module, names = starlark.Module(), starlark.Globals.standard()
        starlark.eval_with(options, module, starlark.parse("constitution", source), names)
        value = module.freeze().call_with(options, function, *arguments).value
        return {"value": json.loads(json.dumps(value, allow_nan=False))}
    except _TooLong:
        return {"code": "gov.rules_too_long", "reason": f"the rules take more than {_THOUSANDS_OF_STEPS},000 steps"}
    except (starlark.StarlarkError, ValueError, TypeError, RecursionError) as error:
        return {"code": "gov.rules_failed", "reason": str(error)[-1000:]}
    except ImportError as error:
        return {"code": "enclave.late_import", "reason": f"{error.name} is imported after the lock-down"}
    except MemoryError:
        return {
            "code": "gov.rules_out_of_memory",
            "reason": f"the rules take more than {_MEMORY_BYTES} bytes of memory",
        }


def size() -> int:
    """Bytes of address space that this process has, asked while there is a ``/proc``."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - before lock-down, plain on purpose
        return int(statm.read().split()[0]) * resource.getpagesize()


def fork(base: int, seal: Callable[..., object] | None) -> socket.socket:
    """Make the process, between the two halves of the lock-down and before any thread.

    Args:
        base: :func:`size` of this process.
        seal: the second half of the lock-down, where there is one.

    Returns:
        The socket over which it is asked.
    """
    call("def f(x):\n    return x\n", "f", [1])  # whatever loads lazily

    def serve(descriptor: int) -> None:
        if seal is not None:
            seal(forks=True)
        while (request := forked.read(descriptor)) is not None:
            forked.write(descriptor, call_apart(request, base + _MEMORY_BYTES, descriptor))

    return forked.fork(serve)


def call_apart(request: bytes, memory: int, *private: int) -> bytes:
    """Answer one request in a fork of this process; whatever becomes of that one, this one goes on.

    Args:
        request: JSON of source, function and arguments.
        memory: bytes of address space that the fork may have.
        private: descriptors that it must not have.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for descriptor in (reading, *private):
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
            forked.write_all(writing, json.dumps(call(*json.loads(request))).encode())
        finally:
            os._exit(0)
    os.close(writing)
    answer = bytearray()
    while len(answer) <= ANSWER_BYTES_MAX and (data := os.read(reading, 65536)):
        answer += data
    os.close(reading)
    os.waitpid(child, 0)
    if not answer or len(answer) > ANSWER_BYTES_MAX:
        return json.dumps(
            {
                "code": "gov.rules_out_of_memory",
                "reason": f"the rules take more than {_MEMORY_BYTES} bytes of memory or {_CPU_SECONDS} s, or answer "
                f"with more than {ANSWER_BYTES_MAX} bytes",
            }
        ).encode()
    return bytes(answer)


async def call_here(source: str, function: str, *arguments: Any) -> Any:
    """The same in a fork of this very process, for whoever audits a ledger: same limits, no enclave.

    Raises:
        GovernanceError: as :meth:`Rules.call`.
    """
    request = json.dumps([source, function, list(arguments)]).encode()
    return _value(json.loads(call_apart(request, size() + _MEMORY_BYTES)))


def _value(answer: dict[str, Any]) -> Any:
    if "code" in answer:
        raise GovernanceError(answer["reason"], code=answer["code"])
    return answer["value"]


def _gone() -> GovernanceError:
    return GovernanceError("the rules cannot be run any more", code="gov.rules_gone")


class Rules:
    """Calls rules; one call at a time."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = forked.Exchange(worker, timeout_s=_TIMEOUT_S, gone=_gone)

    async def call(self, source: str, function: str, *arguments: Any) -> Any:
        """What a function of a constitution gives.

        Raises:
            GovernanceError: it fails (``gov.rules_failed``), takes too long (``gov.rules_too_long``) or too much memory
                (``gov.rules_out_of_memory``).
        """
        request = json.dumps([source, function, list(arguments)]).encode()
        return _value(json.loads(await self._worker.ask(request)))
