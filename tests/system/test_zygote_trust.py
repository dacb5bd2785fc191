"""What a zygote believes, what it may do, and what its forks leave to it."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from sandbox.confine import launcher as launcher_module
from sandbox.confine import privilege
from sandbox.confine import zygote as zygotes
from sandbox.confine.spec import ConfineError
from sandbox.confine.strays import children
from tests.system.confine_fixtures import PYTHON_FORKS, proc_status
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
