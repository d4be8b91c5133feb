"""Children of adapters: they answer, they are replaced when they die, and nothing that they do holds up the enclave."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from coco import limits
from coco.enclave.adapters.contract import Child
from coco.enclave.platform import children, rules_worker
from coco.errors import ChildError, CocoError, LockdownError, RequestError

SECRET = b"what the adapter says"


def serve(question: bytes, ask: Any) -> bytes:
    """What a question asks for, by its first word."""
    word, _, rest = question.partition(b" ")
    match word:
        case b"echo":
            return rest
        case b"pid":
            return str(os.getpid()).encode()
        case b"back":
            return b"heard " + ask(rest) + ask(b"again")
        case b"loop":
            while True:
                pass
        case b"sleep":
            time.sleep(float(rest))
            return b"slept"
        case b"memory":
            return bytes(len(b"x" * int(rest)) % 3)
        case b"recursion":
            return eval("[" * 50_000)
        case b"die":
            os._exit(int(rest))
        case b"raise":
            raise ValueError("what it was asked is in this text")
        case b"large":
            return bytes(int(rest))
        case b"garbage":
            os.write(int(rest), b"\xff\xff\xff\xffgarbage")
            time.sleep(60)
        case b"try":
            return attempt(rest.decode())
    return b"?"


FORBIDDEN = {
    "open": "open('/etc/passwd')",
    "list": "os.listdir('/')",
    "make": "open('/made', 'w')",
    "socket": "__import__('socket').socket()",
    "fork": "os.fork()",
    "thread": "__import__('_thread').start_new_thread(print, ())",
    "program": "os.posix_spawn('/bin/true', ['/bin/true'], {})",
    "signal": "os.kill(os.getppid(), 0)",
    "signal a thread": "ctypes.CDLL(None, use_errno=True).syscall(234, os.getppid(), os.getppid(), 0) == 0 or 1 / 0",
    "limits of others": "__import__('resource').prlimit(os.getppid(), 7, (9, 9))",
    "limits": "__import__('resource').setrlimit(9, (-1, -1))",
    "pipe": "os.pipe()",
    "executable memory": "__import__('mmap').mmap(-1, 4096, prot=7)",
}


def attempt(what: str) -> bytes:
    import ctypes

    try:
        eval(FORBIDDEN[what], {"os": os, "ctypes": ctypes})
    except Exception as error:
        return type(error).__name__.encode()
    return b"allowed"


def factory(settings: Any) -> None:
    return None


def declare(*declared: Child) -> dict[str, Any]:
    made = lambda settings: None  # noqa: E731
    made.children = declared  # type: ignore[attr-defined]
    return {"adapter": made}


class Open:
    """Children without any lock-down, in this very process."""

    def __init__(self, *declared: Child) -> None:
        found = children.declared(declare(*declared))
        keepers = children.fork_programs(found, enclosed=False)
        keepers |= children.fork_functions(found, rules_worker.size(), None)
        self.keepers = keepers
        self.all = children.Children(found, keepers)
        self.log: list[tuple[str, str]] = []
        self.all.log = lambda code, numbers, ids: self.log.append((code, ids["child"]))

    def __enter__(self) -> Open:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.keepers.values():
            sock.close()

    async def ask(self, question: bytes, back: Any = None) -> bytes:
        return await self.all.of("adapter", "child").ask(question, back)

    async def refusal(self, question: bytes, back: Any = None) -> str:
        with pytest.raises(CocoError) as refused:
            await self.ask(question, back)
        return refused.value.code


@pytest.fixture
def opened():
    with Open(Child("child", serve=serve, memory_bytes=64 << 20, answer_seconds=1.0)) as made:
        yield made


def run(story: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


def test_a_child_answers_one_after_the_other(opened):
    async def story():
        answers = await asyncio.gather(*(opened.ask(b"echo %d" % n) for n in range(20)))
        assert answers == [b"%d" % n for n in range(20)]
        large = bytes(5_000_000)
        assert await opened.ask(b"echo " + large) == large
        assert len({await opened.ask(b"pid") for _ in range(5)}) == 1

    run(story())


DEATHS = {
    b"die 3": "child.gone",
    b"die 0": "child.gone",
    b"loop": "child.too_slow",
    b"sleep 30": "child.too_slow",
    b"memory 300000000": "child.out_of_memory",
    b"recursion": "child.failed",
    b"raise": "child.failed",
    b"large %d" % (limits.CHILD_BYTES_MAX + 1): "child.bad_answer",
}


@pytest.mark.parametrize("question", DEATHS, ids=bytes.decode)
def test_whatever_ends_a_child_has_a_code_and_the_next_question_is_served(opened, question):
    async def story():
        before = await opened.ask(b"pid")
        began = time.monotonic()
        assert await opened.refusal(question) == DEATHS[question]
        assert time.monotonic() - began < 5
        assert await opened.ask(b"pid") != before, "another process answers"
        assert opened.log == [(DEATHS[question], "adapter.child")]

    run(story())


def test_a_child_that_died_while_nothing_was_asked_is_replaced_without_a_refusal(opened):
    async def story():
        pid = int(await opened.ask(b"pid"))
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        assert int(await opened.ask(b"pid")) != pid
        assert opened.log == []

    run(story())


def test_garbage_instead_of_an_answer_ends_the_child(opened):
    async def story():
        for descriptor in range(3, 40):  # whichever of them leads to the keeper
            if await opened.refusal(b"garbage %d" % descriptor) == "child.bad_answer":
                break
        else:
            raise AssertionError("no garbage came through")
        assert await opened.ask(b"echo x") == b"x"

    run(story())


def test_a_child_may_ask_back(opened):
    async def story():
        heard = []

        async def back(question: bytes) -> bytes:
            heard.append(question)
            await asyncio.sleep(0.01)
            return SECRET

        assert await opened.ask(b"back colour", back) == b"heard " + SECRET + SECRET
        assert heard == [b"colour", b"again"]

    run(story())


def test_who_answers_a_child_may_fail_leave_or_take_for_ever(opened):
    async def story():
        async def fails(question: bytes) -> bytes:
            raise RequestError("no such state", code="test.no_state")

        async def for_ever(question: bytes) -> bytes:
            await asyncio.sleep(1000)
            return b""

        async def too_long(question: bytes) -> bytes:
            return bytes(limits.CHILD_BYTES_MAX + 1)

        assert await opened.refusal(b"back x", fails) == "test.no_state"
        assert await opened.refusal(b"back x") == "child.bad_answer"
        assert await opened.refusal(b"back x", for_ever) == "child.too_slow"
        assert await opened.refusal(b"back x", too_long) == "child.too_large"
        leaving = asyncio.ensure_future(opened.ask(b"back x", for_ever))
        await asyncio.sleep(0.2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        began = time.monotonic()
        assert await opened.ask(b"echo x") == b"x"
        assert time.monotonic() - began < 0.5, "a child whose asker left is not waited for"

    run(story())


def test_what_is_too_long_or_too_much_is_refused_before_it_is_asked(opened):
    async def story():
        assert await opened.refusal(b"x" * (limits.CHILD_BYTES_MAX + 1)) == "child.too_large"
        asking = [asyncio.ensure_future(opened.ask(b"echo x")) for _ in range(limits.CHILD_QUESTIONS_MAX)]
        await asyncio.sleep(0)
        assert await opened.refusal(b"echo x") == "child.busy"
        assert await asyncio.gather(*asking) == [b"x"] * limits.CHILD_QUESTIONS_MAX
        assert await opened.ask(b"echo y") == b"y"

    run(story())


def test_a_keeper_that_is_gone_is_said_at_once(opened):
    async def story():
        keeper = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", (await opened.ask(b"pid")).decode()]))
        child = int(await opened.ask(b"pid"))
        os.kill(keeper, signal.SIGKILL)
        for _ in range(2):
            assert await opened.refusal(b"echo x") == "child.gone"
        for _ in range(100):
            if not Path(f"/proc/{child}").exists():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the child outlives its keeper")

    run(story())


@pytest.mark.parametrize(
    "wrong",
    [
        Child("child"),
        Child("child", serve=serve, command=("/bin/true",)),
        Child("child", serve=serve, files=("/etc",)),
        Child("child", command=("true",)),
        Child("child", command=("/bin/true",), files=("lib",)),
        Child("../child", serve=serve),
        Child("child", serve=serve, memory_bytes=0),
        Child("child", serve=serve, answer_seconds=0),
    ],
    # Not as text: that has the address of a function, and workers must agree on names of tests.
    ids=["nothing", "both", "a function's files", "relative", "relative files", "a path", "no memory", "no time"],
)
def test_a_declaration_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(LockdownError) as refused:
        children.declared(declare(wrong))
    assert refused.value.code == "lockdown.bad_child"


def test_declarations_are_few_and_have_names_of_their_own():
    twice = Child("child", serve=serve)
    with pytest.raises(LockdownError):
        children.declared(declare(twice, twice))
    with pytest.raises(LockdownError):
        children.declared(declare(*(Child(f"c{n}", serve=serve) for n in range(limits.CHILDREN_MAX + 1))))
    assert children.declared({"plain": factory}) == {}


def test_nobody_asks_another_adapters_child(opened):
    for key in (("adapter", "other"), ("other", "child")):
        with pytest.raises(ChildError) as refused:
            opened.all.of(*key)
        assert refused.value.code == "child.not_declared"


# --- behind the walls: a process of its own, since lock-down is for ever ---

_PROGRAM = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
import test_children as test
from coco.enclave.platform import children, lockdown, rules_worker
declared = children.declared(test.declare(*eval(sys.argv[2], vars(test))))
keepers = children.fork_programs(declared, enclosed=True)
base = rules_worker.size()
lockdown.isolate()
keepers |= children.fork_functions(declared, base, lockdown.seal)
asked = children.Children(declared, keepers)
async def main():
    answers = []
    for name, question in json.loads(sys.argv[3]):
        try:
            answers.append((await asked.of("adapter", name).ask(question.encode())).decode())
        except Exception as error:
            answers.append(getattr(error, "code", repr(error)))
    print(json.dumps(answers))
asyncio.run(main())
"""


def behind_walls(declared: str, *questions: tuple[str, str]) -> list[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", _PROGRAM, here, declared, json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_function_behind_its_walls_can_do_nothing_but_answer():
    asked = [("child", f"try {what}") for what in FORBIDDEN]
    deaths = [("child", "die 1"), ("child", "loop"), ("child", "memory 300000000"), ("child", "raise")]
    declared = "[Child('child', serve=serve, memory_bytes=64 << 20, answer_seconds=1.0)]"
    tried = behind_walls(declared, *asked, *deaths, ("child", "echo alive"))
    answers = dict(zip(FORBIDDEN, tried, strict=False))
    assert "allowed" not in answers.values(), answers
    refused = ["child.gone", "child.too_slow", "child.out_of_memory", "child.failed"]
    assert tried[len(asked) :] == [*refused, "alive"]


# --- programs ---

#: Echoes questions; ``back`` asks back, ``die`` ends, ``read PATH`` and ``run`` and ``socket`` try what they say.
_C = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
static uint8_t message[1 << 20];
static uint32_t get(void) {
  uint32_t size, at = 0;
  if (read(0, &size, 4) != 4) exit(0);
  size = ntohl(size);
  while (at < size) { ssize_t n = read(0, message + at, size - at); if (n <= 0) exit(0); at += n; }
  message[size] = 0;
  return size;
}
static void put(char letter, const char *text) {
  uint32_t size = htonl(1 + strlen(text));
  if (write(1, &size, 4) != 4 || write(1, &letter, 1) != 1 || write(1, text, strlen(text)) < 0) exit(1);
}
int main(void) {
  for (;;) {
    get();
    char *word = (char *)message + 1;
    if (!strcmp(word, "die")) return 3;
    else if (!strcmp(word, "loop")) for (;;);
    else if (!strcmp(word, "fail")) put('f', "");
    else if (!strcmp(word, "socket")) put('a', socket(AF_INET, SOCK_STREAM, 0) < 0 ? "refused" : "allowed");
    else if (!strcmp(word, "fork")) put('a', fork() < 0 ? "refused" : "allowed");
    else if (!strcmp(word, "make")) put('a', open("/made", O_CREAT | O_WRONLY, 0600) < 0 ? "refused" : "allowed");
    else if (!strncmp(word, "read ", 5)) put('a', open(word + 5, O_RDONLY) < 0 ? "refused" : "allowed");
    else if (!strncmp(word, "write ", 6)) put('a', open(word + 6, O_WRONLY) < 0 ? "refused" : "allowed");
    else if (!strcmp(word, "memory")) { char *p = malloc(1 << 30); put('a', p ? "allowed" : "refused"); }
    else put('a', word);
  }
}
"""
_JAVA = r"""
import java.io.*;
public class Echo {
  public static void main(String[] arguments) throws Exception {
    DataInputStream in = new DataInputStream(System.in);
    DataOutputStream out = new DataOutputStream(new BufferedOutputStream(System.out));
    for (;;) {
      byte[] question = new byte[in.readInt()];
      in.readFully(question);
      question[0] = 'a';
      out.writeInt(question.length); out.write(question); out.flush();
    }
  }
}
"""
_PYTHON = """
import struct, sys
while head := sys.stdin.buffer.read(4):
    question = sys.stdin.buffer.read(struct.unpack("!I", head)[0])
    sys.stdout.buffer.write(head + b"a" + question[1:])
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def helper(tmp_path):
    """A program that needs no other file."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, program = tmp_path / "helper.c", tmp_path / "helper"
    source.write_text(_C)
    subprocess.run([compiler, "-O1", "-static", "-o", program, source], check=True)
    return program


def test_a_program_behind_its_walls_has_its_files_and_nothing_else(helper, tmp_path):
    (shown := tmp_path / "shown").mkdir()
    (shown / "data").write_text("x")
    (hidden := tmp_path / "hidden").write_text("x")
    files = [str(helper), str(shown)]
    declared = f"[Child('c', command=[{str(helper)!r}], files={files}, memory_bytes=64 << 20, answer_seconds=1.0)]"
    tried = {
        "hello": "hello",
        f"read {shown}/data": "allowed",
        f"write {shown}/data": "refused",
        f"read {hidden}": "refused",
        f"read {tmp_path}": "refused",
        "read /etc/passwd": "refused",
        "read /proc/self/maps": "refused",
        "make": "refused",
        "socket": "refused",
        "fork": "refused",
        "memory": "refused",
        "die": "child.gone",
        "again": "again",
        "loop": "child.too_slow",
        "fail": "child.failed",
        "and again": "and again",
    }
    assert dict(zip(tried, behind_walls(declared, *(("c", word) for word in tried)), strict=True)) == tried


def test_programs_without_walls(helper):
    with Open(Child("child", command=[str(helper)], memory_bytes=64 << 20, answer_seconds=1.0)) as opened:

        async def story():
            assert await opened.ask(b"hello") == b"hello"
            assert await opened.refusal(b"die") == "child.gone"
            assert await opened.ask(b"hello") == b"hello"

        run(story())


def test_a_program_that_is_not_there_is_gone_each_time():
    with Open(Child("child", command=["/nowhere/program"])) as opened:

        async def story():
            assert [await opened.refusal(b"x") for _ in range(2)] == ["child.gone"] * 2

        run(story())


def _libraries(*programs: str) -> list[str]:
    """What the loader loads for programs and shared objects."""
    lines = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout.split()
    return sorted({word for word in lines if word.startswith("/") and not word.endswith(":")})


def test_python_as_a_program_behind_walls(tmp_path):
    script = tmp_path / "echo.py"
    script.write_text(_PYTHON)
    python = str(Path(sys.executable).resolve())
    stdlib = sysconfig.get_paths()["stdlib"]
    files = [python, stdlib, str(script), *_libraries(python)]
    command = [python, "-I", "-S", "-B", str(script)]
    declared = f"[Child('p', command={command}, files={files}, start_seconds=10.0)]"
    assert behind_walls(declared, ("p", "hello"), ("p", "again")) == ["hello", "again"]


def test_a_virtual_machine_for_java_behind_walls(tmp_path):
    java, compiler = shutil.which("java"), shutil.which("javac")
    if java is None or compiler is None:
        pytest.skip("there is no Java")
    (tmp_path / "Echo.java").write_text(_JAVA)
    subprocess.run([compiler, "-d", tmp_path, tmp_path / "Echo.java"], check=True)
    home = Path(java).resolve().parent.parent
    objects = [str(path) for path in home.rglob("*.so")]
    files = [
        str(home),
        "/etc/java-17-openjdk",
        str(tmp_path / "Echo.class"),
        *_libraries(str(home / "bin/java"), *objects),
    ]
    files = [path for path in files if Path(path).exists() and not path.startswith(str(home) + "/")]
    # Without /proc a loader does not know where a program lies, so it is told where the libraries are.
    loader = next(path for path in files if Path(path).name.startswith("ld-linux"))
    command = [
        loader,
        "--library-path",
        f"{home}/lib",
        str(home / "bin/java"),
        "-Xmx64m",
        "-Xshare:auto",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
    ]
    command += ["-XX:-UsePerfData", "-XX:CompressedClassSpaceSize=32m", "-cp", str(tmp_path), "Echo"]
    declared = f"[Child('j', command={command}, files={files}, memory_bytes=3 << 30, start_seconds=20.0)]"
    assert behind_walls(declared, ("j", "hello"), ("j", "again")) == ["hello", "again"]
