"""The enclave process: import everything, lock the door, then serve the control channel until it ends."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import uvloop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from coco import limits
from coco._native import Background, Front, LedgerSecret, WriteSet, limit_memory
from coco.attestation.evidence import VIRTUAL
from coco.attestation.verified import SGX
from coco.channel import messages
from coco.enclave.keys.identity import NodeIdentity, ServiceIdentity
from coco.enclave.node.ground import Handed
from coco.enclave.node.life import EnclaveNode
from coco.enclave.ordering.registry import AdapterFactory
from coco.enclave.platform import bundle, children, imports, lockdown, rules_worker
from coco.enclave.platform.control import Control
from coco.enclave.platform.evidence import READERS, Virtual, attester
from coco.enclave.platform.faults import place_of
from coco.enclave.transport.listener import open_door
from coco.errors import CocoError

#: Threads for calls of the extension and for signing: one for each of two cores, and one that may wait.
_THREADS = 3
#: Time for the host to hear the last word; it closes the channel when it has. A write to an enclave that has gone by
#: then would have it never read that word.
_EXIT_SECONDS = 1.0
#: Under Gramine there is no kernel to ask for walls, and the processor keeps everybody out.
_ENCLOSED = "SGX under Gramine; the lock-down of Linux processes does not exist there"
#: What is spoken on each inherited listener.
_PROTOCOLS = {"application": "json_rpc", "administration": "http", "peers": "peer", "dialled": "dialled"}


def _preload() -> None:
    """Do once, in the open, what imports lazily: after lock-down there is no file left to import from."""
    imports.preload()
    datetime.strptime("2026", "%Y")
    service = ServiceIdentity.generate(0)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = service.endorse(key.public_key(), 1, ["localhost", "127.0.0.1"], 0)
    NodeIdentity(key, certificate).node_id  # noqa: B018
    signature = key.sign(b"", ec.ECDSA(hashes.SHA384()))
    key.public_key().verify(signature, b"", ec.ECDSA(hashes.SHA384()))
    secret = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    secret.encrypt(b"", padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None))
    pem = secret.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    serialization.load_pem_public_key(pem)
    LedgerSecret.generate(b"")
    WriteSet([("coco.warm", b"k", b"v")]).encode_private()


def _factories(argument: str) -> dict[str, AdapterFactory]:
    found: dict[str, AdapterFactory] = {}
    for item in filter(None, argument.split(",")):
        name, _, place = item.partition(":")
        module, _, attribute = place.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def _silence() -> None:
    """No text of an exception leaves: standard error leads nowhere, and hooks print nothing."""
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda *_: None


def _attester(platform: str, measurement: str) -> attester.Attester:
    """Whoever gives evidence, before the lock-down.

    Raises:
        PlatformError: this is no such platform (``platform.no_evidence``).
    """
    if platform == VIRTUAL:
        return attester.InProcess(Virtual(measurement))
    if platform == SGX:
        # Gramine's files stand for instructions of the processor: no other process has this enclave's.
        return attester.InProcess(READERS[SGX]())
    return attester.Forked(platform, attester.fork(platform))


def run(sockets: dict[str, int], paths: list[str], *, adapters: str, platform: str, root: str) -> None:
    """Run the enclave on its inherited sockets, out of a bundle at ``root``, if that is given; never returns."""
    diagnosis = os.dup(2)
    try:
        factories = _factories(adapters)
        declared = children.declared(factories)
        limit_memory(limits.CALL_MEMORY_BYTES_MAX, limits.SPARE_MEMORY_BYTES)
        if platform not in (VIRTUAL, SGX):
            attester.mix(platform)
        _preload()
        home = Path(root) if root else None
        bundle.check(paths, home)
        measurement = bundle.measurement(home, children.files_of(declared.values()))
        late = imports.Late()
        late.seal()
        attesting = _attester(platform, measurement)
        keepers = children.fork_programs(declared, enclosed=platform != SGX)
        null = os.open(os.devnull, os.O_RDWR)
        base = rules_worker.size()
        report = {"boundary": _ENCLOSED} if platform == SGX else lockdown.isolate()
        seal = lockdown.seal if platform != SGX else None
        worker = rules_worker.fork(base, seal)
        keepers |= children.fork_functions(declared, base, seal)
        asked = children.Children(declared, keepers)
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="coco"))
        control = socket.socket(fileno=sockets.pop("control"))
        control.setblocking(False)
        doors = {
            name: open_door(socket.socket(fileno=descriptor), protocol=_PROTOCOLS[name])
            for name, descriptor in sockets.items()
        }
        background = Background()
    except CocoError as error:
        os.write(diagnosis, f"coco enclave: refused to start: {error.diagnostics()}\n".encode())
        os._exit(78)
    _silence()
    code = 1

    async def main() -> int:
        # The loop makes its wake-up sockets when it starts to run: the second half of the lock-down comes after that.
        try:
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            if platform != SGX:
                report.update(lockdown.seal())
        except CocoError as error:
            os.write(diagnosis, f"coco enclave: refused to start: {error.diagnostics()}\n".encode())
            return 78
        os.close(diagnosis)
        return await _serve(control, doors, background, worker, asked, report, attesting, factories, late)

    # What was imported stays for ever: the collector need not look at it, nor after every few hundred requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    # The default of 5 ms lets a batch thread hold up the event loop for longer than a whole request takes.
    sys.setswitchinterval(0.0005)
    try:
        code = loop.run_until_complete(main())
    finally:
        os._exit(code)


async def _serve(
    channel: socket.socket,
    doors: dict[str, Front],
    background: Background,
    worker: socket.socket,
    asked: children.Children,
    report: dict[str, str],
    attesting: attester.Attester,
    factories: dict[str, AdapterFactory],
    late: imports.Late,
) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    control = Control(end)
    await loop.create_connection(lambda: control, sock=channel)
    rules = rules_worker.Rules(worker)
    asked.log = control.log
    node = EnclaveNode(Handed(control, doors, background, rules, asked, report, attesting, factories, end))
    late.hear(node.faults.late_import)
    loop.set_exception_handler(lambda _, context: node.faults.unexpected(context.get("exception")))
    task = loop.create_task(node.run())
    task.add_done_callback(lambda t: end(t.exception()) if not t.cancelled() and t.exception() else None)
    error = await ended
    if error is None:
        return 0
    module, line = place_of(error)
    code = error.code if isinstance(error, CocoError) else "enclave.failed"
    numbers = {"line": line, **(error.numbers if isinstance(error, CocoError) else {})}
    control.send(messages.Exit(code, numbers, {"module": module}))
    await asyncio.wait({control.closed}, timeout=_EXIT_SECONDS)
    return 70
