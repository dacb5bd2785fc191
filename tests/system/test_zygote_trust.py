"""What a zygote and a supervisor may do and believe, what they keep to themselves."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
import trio

from sandbox.confine import launcher as launcher_module
from sandbox.confine import least, privilege
from sandbox.confine import zygote as zygotes
from sandbox.confine.spec import ConfineError
from sandbox.confine.strays import children, descendants
from tests.system.confine_fixtures import PYTHON_FORKS, proc, proc_status
from tests.system.conftest import Functions, Start
from tests.system.test_zygote import ended, pooled, run

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not privilege.may_mount(), reason="host: sandboxes made ahead need a namespace of our own"
    ),
]


@pytest.mark.parametrize("wrong", ["namespaces", "control", "pipe", "group", "root"])
async def test_a_zygote_believes_no_descriptor(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is root's own supervisor; still, each descriptor is asked what it is before it is used."""
    async with pooled() as (launcher, spec):
        assert launcher._zygotes is not None
        zygote = await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")
        ours, theirs = socket.socketpair()
        reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
        fds, procs = [theirs.fileno(), *writes], []
        if wrong == "namespaces":
            monkeypatch.setattr(zygotes, "NAMESPACES", zygotes.NAMESPACES[::-1])
        elif wrong == "control":
            fds = [writes[0], *writes]
        elif wrong == "pipe":
            fds = [theirs.fileno()] * 4
        elif wrong == "group":
            monkeypatch.setattr(zygotes.os, "O_WRONLY", os.O_RDONLY)
            procs = ["/proc/self/cgroup"]
        else:
            monkeypatch.setattr(zygotes.bwrap, "UID", 0)
        try:
            with pytest.raises(ConfineError, match="cannot fork a runtime"):
                await zygote.fork(os.getpid(), fds, procs, on_end=lambda: None)
            monkeypatch.undo()
            sandbox = await launcher.launch(spec)  # it is as good as before
            await run(sandbox, "raise SystemExit(5)")
            assert (await ended(sandbox)).code == 5
            assert zygote.alive
        finally:
            ours.close()
            theirs.close()
            for fd in (*reads, *writes):
                os.close(fd)


async def test_a_zygote_has_the_capabilities_of_joining_and_no_others() -> None:
    async with pooled() as (launcher, spec):
        assert launcher._zygotes is not None
        zygote = await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")
        (interpreter,) = children(zygote.pid)
        # With no_new_privs no program that it might execute has more (capabilities(7)).
        assert proc_status(interpreter, "NoNewPrivs") == ["1"]
        for kind in ("CapPrm", "CapEff"):
            # linux/capability.h: setgid, setuid, sys_chroot, sys_admin
            (held,) = proc_status(interpreter, kind)
            assert int(held, 16) == 1 << 6 | 1 << 7 | 1 << 18 | 1 << 21, kind


async def test_a_zygote_reaps_what_a_fork_leaves_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child made with CLONE_PARENT is the zygote's, and unreaped would keep the sandbox from ending.

    The filter refuses the flag; here there is none.
    """
    monkeypatch.setattr(launcher_module, "_filter", lambda *_: None)
    async with pooled() as (launcher, spec):
        sandbox = await launcher.launch(spec)
        await run(
            sandbox,
            "import ctypes, os, platform\n"
            "libc = ctypes.CDLL(None)\n"
            "number = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n"
            "made = [libc.syscall(number, 0x8000 | 17, 0, 0, 0, 0) for _ in range(9)]\n"
            "if 0 in made:\n    os._exit(0)\n"
            "os._exit(made.count(-1) + 7)\n",
        )
        assert (await ended(sandbox)).code == 7
        with trio.fail_after(zygotes.BWRAP_LIMIT_S):  # sooner than the zygote would be given up
            await sandbox.kill()
        assert launcher._zygotes is not None
        assert (await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")).alive


@pytest.mark.skipif(
    not privilege.of_the_host(), reason="host: capabilities in a user namespace are nobody else's"
)
def test_the_supervisor_keeps_what_it_needs_and_no_more(start: Start, functions: Functions) -> None:
    """Every thread of it, and whatever it starts as root."""
    functions.add("hello", "def handler(event, context):\n    return 1\n")
    server = start()
    assert server.invoke("hello")["Payload"] == 1
    kept = sum(1 << capability for capability in least.KEPT)
    pids = [server.process.pid, *descendants(server.process.pid)]
    places = [(pid, int(task)) for pid in pids for task in os.listdir(f"/proc/{pid}/task")]
    for pid, thread in places:
        for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
            (held,) = proc_status(thread, kind) or ["0"]
            # A bwrap of a sandbox is root of its own user namespace, which is nobody's.
            if proc_status(pid, "Uid")[:1] == ["0"]:
                assert int(held, 16) & ~kept == 0, (pid, thread, kind)
    for capability in ("sys_module", "sys_rawio", "sys_boot", "sys_time", "net_raw", "syslog"):
        assert not any(words.startswith(f"{capability}:") for words in least.KEPT.values())
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_CORE)
    assert (soft, hard) == (least.no_core(),) * 2


def test_no_secret_is_in_an_argv_or_an_environ_of_the_host(
    start: Start, functions: Functions
) -> None:
    """A function's variables travel over its control socket, and are in no process but its own."""
    functions.add(
        "keeps",
        "import os, time\ndef handler(event, context):\n    time.sleep(0)\n    return os.environ['TOKEN']\n",
        '[environment]\nTOKEN = "secret-of-keeps"\n',
    )
    server = start()
    server.wait_prepared()
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for pid in descendants(server.process.pid):
                for file in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        if b"secret-of-keeps" in Path(f"/proc/{pid}/{file}").read_bytes():
                            seen.add(f"{file} of {proc(pid, 'comm')!r}")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(3):
            assert server.invoke("keeps")["Payload"] == "secret-of-keeps"
    finally:
        stop.set()
        looking.join()
    assert seen == set()


def test_an_executed_runtime_alone_has_its_variables(start: Start, functions: Functions) -> None:
    """What is executed has them in its own environ, as any program has; nobody above it does."""
    functions.add(
        "keeps",
        "import os, time\ndef handler(event, context):\n    return os.getpid()\n",
        '[environment]\nTOKEN = "secret-of-keeps"\n',
    )
    server = start(LAMBOX_ZYGOTE="false")
    server.invoke("keeps")
    having = []
    for pid in descendants(server.process.pid):
        with contextlib.suppress(
            PermissionError
        ):  # an ordinary user's pid 1s: not even we may look
            if b"secret-of-keeps" in proc(pid, "environ") + proc(pid, "cmdline"):
                having.append(proc(pid, "comm").decode().strip())
    assert len(having) == 1
    assert having[0].startswith("python")
