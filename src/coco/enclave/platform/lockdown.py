"""Close the enclave process of platform ``virtual`` off from the machine that it runs on (Linux, x86-64).

Order that works: memory -> namespaces and private root -> no privileges -> not dumpable -> Landlock -> seccomp.
It must run while the process has one thread. It protects against a broken host *process*, never against root:
what could be applied is reported in ``/node/info``, what must hold and does not raises :class:`LockdownError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
from collections.abc import Sequence
from typing import Any, Final

import pyseccomp

from coco.errors import LockdownError

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NAME, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 15, 38, 65
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_THREAD = 0x10000000, 0x40000000, 0x10000
_CLONE_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWNET
_MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 16384, 1 << 18, 2, 4, 8
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_MNT_DETACH: Final = 2
#: What interpreters do to descriptors that they open: keep them from programs that they start.
_FIOCLEX_BOTH: Final = (0x5450, 0x5451)
_PROT_EXEC, _FIONBIO, _F_GETFL, _F_SETFL, _AT_EMPTY_PATH = 4, 0x5421, 3, 4, 0x1000
_SYS_PIVOT_ROOT: Final = 155
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_PATH_BENEATH: Final = 1
#: Write and read files, read and remove directories, make them: what reports by files need.
_LANDLOCK_FILES: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7
#: Read and run files, read directories: what programs need.
_LANDLOCK_READ_DIR: Final = 1 << 3
_LANDLOCK_PROGRAMS: Final = 1 << 0 | 1 << 2 | _LANDLOCK_READ_DIR
_SIGKILL: Final = 9

_ALLOWED: Final = [
    "read",
    "write",
    "readv",
    "writev",
    "recvfrom",
    "sendto",
    "sendmsg",
    "close",
    "shutdown",
    "accept4",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_ctl",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "futex",
    "munmap",
    "mremap",
    "madvise",
    "brk",
    "fstat",
    "lseek",
    "getrandom",
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "getpid",
    "gettid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getrusage",
    "tgkill",
    "exit",
    "exit_group",
    "sched_yield",
    "sched_getaffinity",
    "rseq",
    "set_robust_list",
    "membarrier",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "stat",
    "lstat",
    "newfstatat",
]
#: What a child that answers questions over two pipes needs, in one thread.
_CHILD: Final = [
    *("read", "write", "close", "poll", "munmap", "mremap", "madvise", "brk", "fstat", "lseek", "getrandom"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "gettimeofday", "time", "futex", "sched_yield"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "getpid", "gettid"),
    *("getrusage", "exit", "exit_group", "rseq", "set_robust_list", "membarrier", "sched_getaffinity"),
]
#: What a program needs besides, and a keeper that starts one: files (those that the walls leave it) and memory that can
#: be executed, but neither processes of its own nor sockets.
_PROGRAM: Final = [
    *("execve", "openat", "open", "pread64", "readlink", "readlinkat", "access", "faccessat", "faccessat2"),
    *("getdents64", "statx", "statfs", "fstatfs", "getcwd", "fadvise64", "fcntl", "dup", "dup2", "dup3", "pipe2"),
    *("mmap", "mprotect", "mincore", "msync", "mlock", "munlock", "get_mempolicy", "arch_prctl", "set_tid_address"),
    *("getrlimit", "uname", "sysinfo", "getppid", "getpgrp", "times", "eventfd2"),
    *("sched_getparam", "sched_getscheduler", "epoll_create1"),
]
_KILLED: Final = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "execve",
    "execveat",
    "bpf",
    "io_uring_setup",
    "kexec_load",
    "init_module",
    "finit_module",
    "mount",
    "pidfd_getfd",
    "userfaultfd",
    "perf_event_open",
]


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise LockdownError(f"{what}: {os.strerror(number)}", code="lockdown.failed")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        _fail(f"prctl {option}")


def _lock_memory() -> str:
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    except (ValueError, OSError):
        return "not applied: the limit on locked memory cannot be raised"
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"not applied: {os.strerror(ctypes.get_errno())}"
    return "applied"


def _bind(descriptor: int, path: str) -> None:
    """Show a file or folder below the new root, which is at ``/tmp``: where it was, to be read and run only."""
    target = "/tmp" + path  # noqa: S108 - the new root, which nobody else sees
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    source = f"/proc/self/fd/{descriptor}".encode()
    if _libc.mount(source, target.encode(), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None) != 0:
        _fail(f"bind {path}")
    kept = os.fstatvfs(descriptor).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | kept
    if _libc.mount(None, target.encode(), None, ctypes.c_ulong(flags), None) != 0:
        _fail(f"make {path} read-only")


def _private_root(shown: Sequence[str] = ()) -> None:
    """Leave the machine's files and network behind, but for some files and folders."""
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    if _libc.unshare(flags) != 0:
        _fail("unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - before lock-down, plain on purpose
            file.write(text)
    if _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        _fail("make mounts private")
    # Of the mounts of this namespace, and before the new root hides what is below ``/tmp``.
    descriptors = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in shown}
    # ramfs: unlike tmpfs it is never written to swap.
    options = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    root = b"/tmp"
    if _libc.mount(b"ramfs", root, b"ramfs", options, b"mode=700") != 0:
        _fail("mount ramfs")
    for path, descriptor in descriptors.items():
        _bind(descriptor, path)
        os.close(descriptor)
    os.mkdir("/tmp/old")  # noqa: S108, PTH102
    if _libc.syscall(_SYS_PIVOT_ROOT, root, b"/tmp/old") != 0:
        _fail("pivot_root")
    os.chdir("/")
    if _libc.umount2(b"/old", _MNT_DETACH) != 0:
        _fail("detach the old root")
    os.rmdir("/old")  # noqa: PTH106


def _drop_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # past the last capability that this kernel knows
    header, data = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    if _libc.capset(header, data) != 0:
        _fail("capset")


def _close_memory(*, executable: bool = False) -> str:
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if executable:
        return "not applied: programs are loaded"
    if _libc.prctl(_PR_SET_MDWE, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        return f"not applied: {os.strerror(ctypes.get_errno())}"
    return "applied"


def _landlock(folders: Sequence[str] = (), access: int = _LANDLOCK_FILES) -> str:
    """Handle everything the kernel knows and allow nothing but files below some folders: the enclave opens none."""
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if abi < 0:
        return f"not applied: {os.strerror(ctypes.get_errno())}"
    bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    network, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attribute = struct.pack("<QQQ", (1 << bits) - 1, network, scoped)
    attribute = attribute[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint(0))
    if ruleset < 0:
        _fail("landlock_create_ruleset")
    for folder in folders:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        of_files = access if stat.S_ISDIR(os.fstat(descriptor).st_mode) else access & ~_LANDLOCK_READ_DIR
        rule = struct.pack("<Qi", of_files, descriptor)
        arguments = ctypes.c_int(_LANDLOCK_PATH_BENEATH), rule, ctypes.c_uint(0)
        if _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), *arguments) != 0:
            _fail("landlock_add_rule")
        os.close(descriptor)
    if _libc.syscall(_SYS_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
        _fail("landlock_restrict_self")
    os.close(ruleset)
    return f"applied, abi {abi}"


def _seccomp(
    *,
    forks: bool = False,
    keeps: bool = False,
    programs: bool = False,
    files: bool = False,
    commands: Sequence[int] = (),
) -> None:
    """Allow-list; everything else fails with EPERM, a few calls kill. No recvmsg: no descriptor comes in."""
    rules: Any = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in (*_ALLOWED, *(_PROGRAM if programs else ())):
        rules.add_rule(pyseccomp.ALLOW, name)
    for name in ("mmap", "mprotect") if not programs else ():
        rules.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))
    for command in (_FIONBIO, *commands):
        rules.add_rule(pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, command))
    for name in ("openat", "mkdir", "rmdir") if files else ():
        rules.add_rule(pyseccomp.ALLOW, name)
    # A thread may say that others go before it; it cannot take that back, nor say it of another process.
    nobody_else = pyseccomp.Arg(0, pyseccomp.EQ, 0), pyseccomp.Arg(1, pyseccomp.EQ, 0)
    rules.add_rule(pyseccomp.ALLOW, "setpriority", *nobody_else)
    for command in (_F_GETFL, _F_SETFL) if not programs else ():
        rules.add_rule(pyseccomp.ALLOW, "fcntl", pyseccomp.Arg(1, pyseccomp.EQ, command))
    rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    if forks:
        # A process like this one, in the same namespaces and under the same filter.
        rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_NAMESPACES, 0))
        for name in ("wait4", "pipe2", "prlimit64", "setrlimit"):
            rules.add_rule(pyseccomp.ALLOW, name)
    if keeps:
        # It ends its child, which ends with it, and has a narrower filter than this one.
        for name in ("kill", "seccomp"):
            rules.add_rule(pyseccomp.ALLOW, name)
        rules.add_rule(pyseccomp.ALLOW, "prctl", pyseccomp.Arg(0, pyseccomp.EQ, _PR_SET_PDEATHSIG))
    if programs:
        rules.add_rule(pyseccomp.ALLOW, "prctl", pyseccomp.Arg(0, pyseccomp.EQ, _PR_SET_NAME))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for name in _KILLED if not programs else (name for name in _KILLED if name != "execve"):
        rules.add_rule(pyseccomp.KILL_PROCESS, name)
    rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    rules.load()


def _hide_io_uring() -> None:
    """Make the event loop's library believe that the kernel has no io_uring, which the full filter refuses."""
    rules: Any = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "io_uring_setup")
    rules.load()


def isolate() -> dict[str, str]:
    """First half, before any thread and any key: memory, namespaces, private root, privileges.

    Returns what was applied, by name; raises :class:`LockdownError` where a boundary cannot be made.
    """
    report = {"locked_memory": _lock_memory()}
    _private_root()
    _drop_privileges()
    _hide_io_uring()
    return {**report, "namespaces": "applied", "private_root": "applied, ramfs", "capabilities": "none"}


def confine(folders: Sequence[str], commands: Sequence[int]) -> None:
    """Close off a process that reads evidence and holds nothing else: it has its device, or files below some folders.

    Args:
        folders: where it may open files.
        commands: that it may give to devices which it has opened (``ioctl``).
    """
    _drop_privileges()
    _close_memory()
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    _landlock(folders)
    _seccomp(files=bool(folders), commands=commands)


def enclose(files: Sequence[str]) -> None:
    """Close off a process that starts a program, again and again, and holds nothing else: before :func:`isolate`.

    Args:
        files: files and folders that the program may read and run; there is nothing else for it, and no network.
    """
    shown = [os.path.realpath(path) for path in files]
    _private_root(list(dict.fromkeys([*files, *shown])))
    _drop_privileges()
    _close_memory(executable=True)
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    _landlock(files, _LANDLOCK_PROGRAMS)
    _seccomp(forks=True, keeps=True, programs=True, commands=_FIOCLEX_BOTH)


def end_with_parent() -> None:
    """Have this process killed when the one that made it ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def narrow(*, program: bool = False) -> None:
    """Close off a child further than its keeper, which is closed off already: it makes no process.

    Args:
        program: whether it is about to become one, which may have threads, and files inside its walls.
    """
    end_with_parent()
    rules: Any = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in sorted({*_ALLOWED, *_PROGRAM} - {"tgkill"}) if program else _CHILD:
        rules.add_rule(pyseccomp.ALLOW, name)
    # Of its own: others of the same user are the enclave and its keeper.
    rules.add_rule(pyseccomp.ALLOW, "tgkill", pyseccomp.Arg(0, pyseccomp.EQ, os.getpid()))
    if program:
        rules.add_rule(pyseccomp.ALLOW, "prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0))
        for command in _FIOCLEX_BOTH:
            rules.add_rule(pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, command))
        rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
        rules.add_rule(pyseccomp.ALLOW, "prctl", pyseccomp.Arg(0, pyseccomp.EQ, _PR_SET_NAME))
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    else:
        for name in ("mmap", "mprotect"):
            rules.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))
    # New privileges are ruled out since the keeper was closed off, which may not say so again.
    rules.set_attr(pyseccomp.Attr.CTL_NNP, 0)
    rules.load()


def seal(*, forks: bool = False, keeps: bool = False) -> dict[str, str]:
    """Second half, once the event loop exists: not dumpable, parent death, Landlock, seccomp.

    Args:
        forks: whether this process may make others like it.
        keeps: whether it may end them, and close them off further.
    """
    report = {"no_new_executable_memory": _close_memory()}
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    report["landlock"] = _landlock()
    _seccomp(forks=forks or keeps, keeps=keeps)
    return {**report, "not_dumpable": "applied", "seccomp": "applied"}
