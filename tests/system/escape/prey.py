"""Owns what the attempts are after: things of the host, open to everybody, and files that lead to them.

Everything here grants all it can (mode 0666, listening, same uid): what keeps a sandbox out is the sandbox.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sandbox.confine import privilege

libc = ctypes.CDLL(None, use_errno=True)
IPC_CREAT, IPC_RMID = 0o1000, 0
KEY = {"x86_64": (248, 250), "aarch64": (217, 219)}
KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_SETPERM, SESSION_KEYRING = 1, 5, -3
"""asm/unistd.h (add_key, keyctl), linux/keyctl.h"""
XATTR_CAPS = bytes.fromhex("0100000200002000" + "0000000000000000" + "00000000")
"""security.capability: vfs_cap_data version 2, effective, CAP_SYS_ADMIN permitted."""


@contextmanager
def prey(folder: Path) -> Iterator[dict[str, Any]]:
    """Facts for the attempts; `folder`/functions/attack is the function's folder. Everything is gone afterwards."""
    mark = f"escape-mark-{secrets.token_hex(16)}"
    facts: dict[str, Any] = {"digest": hashlib.sha256(mark.encode()).hexdigest()}
    host, code = folder / "host", folder / "functions/attack"
    for place in (host, code):
        place.mkdir(parents=True)
    for place in (folder, host, code.parent, code):
        place.chmod(0o755)
    with ExitStack() as stack:
        secret = host / "secret"
        secret.write_text(mark)
        facts["secret"] = str(secret)
        facts["mark file"] = str(secret)
        _sockets(stack, facts, host, code)
        _ipc(stack, facts, mark)
        _key(facts, mark)
        held = stack.enter_context(subprocess.Popen(["sleep", "600"], env={"SECRET": mark}))
        stack.callback(held.kill)
        facts["process"] = held.pid
        _code(facts, host, code)
        yield facts


def _sockets(stack: ExitStack, facts: dict[str, Any], host: Path, code: Path) -> None:
    name = f"escape-{secrets.token_hex(8)}"
    facts["abstract"] = name
    for path in (f"\0{name}", str(host / "socket"), str(code / "socket")):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(path)
        sock.listen()
        if path[0] != "\0":
            os.chmod(path, 0o777)
    facts["socket"] = str(host / "socket")
    for key, address in (("tcp", "127.0.0.1"), ("tcp6", "::1")):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError):  # a host without IPv6
            server = stack.enter_context(socket.create_server((address, 0), family=family))
            facts[key] = server.getsockname()[1]
    facts.setdefault("tcp6", facts["tcp"])


def _ipc(stack: ExitStack, facts: dict[str, Any], mark: str) -> None:
    key = facts["ipc key"] = secrets.randbelow(1 << 30) + 1
    memory = libc.shmget(key, 4096, IPC_CREAT | 0o666)
    queue = libc.msgget(key, IPC_CREAT | 0o666)
    semaphores = libc.semget(key, 1, IPC_CREAT | 0o666)
    stack.callback(libc.shmctl, memory, IPC_RMID, None)
    stack.callback(libc.msgctl, queue, IPC_RMID, None)
    stack.callback(libc.semctl, semaphores, 0, IPC_RMID, 0)
    facts["shared memory"] = memory
    name = f"/escape-{key}"
    facts["mq"] = name
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    queue = rt.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, ctypes.c_uint(0o666), None)
    if queue >= 0:  # a kernel may have none
        os.close(queue)
        stack.callback(rt.mq_unlink, name.encode())
    shm = Path(f"/dev/shm{name}")
    if shm.parent.is_dir():
        shm.write_text(mark)
        shm.chmod(0o666)
        stack.callback(shm.unlink)
    facts["dev shm"] = str(shm)


def _key(facts: dict[str, Any], mark: str) -> None:
    """In a session keyring of this process, as a login's would be; what it starts inherits it."""
    add_key, keyctl = KEY[os.uname().machine]
    libc.syscall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, None)
    text = mark.encode()
    facts["key"] = libc.syscall(add_key, b"user", b"escape", text, len(text), SESSION_KEYRING)


def _code(facts: dict[str, Any], host: Path, code: Path) -> None:
    """A function's folder with everything in it that could lead out."""
    depth = "../" * 30
    for name, to in {
        "absolute": facts["secret"],
        "dotted": f"{depth}{facts['secret'].lstrip('/')}",
        "shadow": "/etc/shadow",
        "root": "/",
        "above": "..",
        "chain-1": "link chain-2",
        "chain-2": "link above/../../../" + facts["secret"].lstrip("/"),
        "supervisor": f"/proc/{os.getpid()}/root{facts['secret']}",
        "pid 1": f"/proc/1/root{facts['secret']}",
        "loop": "link loop",
    }.items():
        (code / f"link {name}").symlink_to(to)
    os.mkfifo(code / "fifo")
    (code / "fifo").chmod(0o666)
    private = host / "private"
    private.write_text(Path(facts["secret"]).read_text())
    private.chmod(0o600)
    if privilege.may_change_uid():
        # Else the launcher's sandboxes have the user's own uid, and what he hides from others he does not from them.
        os.link(private, code / "hard link")
    facts["root made it"] = os.geteuid() == 0
    shell = code / "set-user-id"
    shutil.copyfile("/bin/bash", shell)
    shell.chmod(0o755)
    capable = code / "capable"
    shutil.copyfile(shell, capable)
    capable.chmod(0o755)
    if facts["root made it"]:
        shell.chmod(0o6755)
        with suppress(OSError):  # a file system without extended attributes
            os.setxattr(capable, "security.capability", XATTR_CAPS)
        with suppress(PermissionError):  # a container that may not
            os.mknod(code / "device", stat.S_IFCHR | 0o666, os.makedev(1, 1))  # /dev/mem
    shutil.copyfile(Path(__file__).with_name("inside.py"), code / "inside.py")
    (code / "function.toml").write_text("timeout = 60\nmemory_size = 1769\n")
    (code / "handler.py").write_text("from inside import handler\n")


def tell(code: Path, facts: dict[str, Any], attempts: list[tuple[str, str]]) -> None:
    """Put what is to be tried into the function's folder."""
    began = {pid: _began(pid) for pid in (facts["process"], facts["supervisor"])}
    facts = facts | {"began": began}
    (code / "attempts.json").write_text(json.dumps({"prey": facts, "attempts": attempts}))


def _began(pid: int) -> str:
    """In clock ticks since the boot: with it a pid names one process (proc(5), /proc/PID/stat, field 22)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
