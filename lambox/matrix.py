"""Owns the table of what holds on a host: every line is what a real environment did, was refused, or said.

Functions of its own are served from a temporary folder by a node like any other, and asked one question each.
`tools/host-matrix` puts the tables of several hosts side by side (docs/hosts.md).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import statistics
import tempfile
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from lambox import doctor
from lambox.config import Config
from lambox.node import Node, open_node
from lambox.running import cause
from runtimeapi.intake import read_trace_id
from sandbox.confine import identity, privilege, strays
from sandbox.confine.bwrap import GID, UID
from sandbox.confine.spec import ConfineError
from sandbox.errors import CallerError, PlatformFault
from sandbox.invocation import Invocation, Outcome, new_request_id

ANSWER_LIMIT_S = 100.0
COLD_STARTS = 5
OUT_OF_MEMORY = b"Runtime.OutOfMemory"
SMALL_MB = 128
UID_LOOKS, UID_LOOK_S = 20, 0.25
"""0.07 of a core."""
METADATA = ("169.254.169.254", 80)
REFUSALS = {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH"}
"""What the router says at once. Where nobody says anything (ETIMEDOUT) it may as well have been let through."""
NO = "no"
SLOW = "not known: this host was too slow"

HANDLER = """
    import ctypes, errno, json, os, signal, socket, sys, threading, time
    libc = ctypes.CDLL(None, use_errno=True)
    ticks = [0]

    def tick():
        while True:
            ticks[0] += 1
            time.sleep(0.02)

    def status(key):
        for line in open("/proc/self/status"):
            if line.startswith(key + ":"):
                return line.split(":")[1].strip()

    def mount_of(path):
        for line in open("/proc/self/mounts"):
            if line.split()[1] == path:
                return line.split()[2]

    def hog(mb):
        held = []
        for _ in range(mb):
            held.append(b"x" * (1 << 20))
        return held

    def reach(address, port):
        try:
            socket.create_connection((address, port), 5).close()
        except TimeoutError:
            return "ETIMEDOUT"
        except OSError as exc:
            return errno.errorcode.get(exc.errno, str(exc))
        return "connected"

    def names_answer():
        "Whether some name server says anything: who serves the root, which no cache has to ask for."
        question = b"\\x6c\\x62\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\1"
        for line in open("/etc/resolv.conf"):
            if line.startswith("nameserver"):
                address = line.split()[1]
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                for _ in range(2):
                    try:
                        with socket.socket(family, socket.SOCK_DGRAM) as asking:
                            asking.settimeout(3)
                            asking.connect((address, 53))
                            asking.send(question)
                            if asking.recv(4096)[:2] == question[:2]:
                                return True
                    except OSError:
                        pass
        return False

    def refused(number, *args):
        if libc.syscall(number, *args) == -1:
            return errno.errorcode[ctypes.get_errno()]
        return ""

    def handler(event, context):
        do = event["do"]
        if do == "look":
            return {"uid": os.getuid(), "gid": os.getgid(), "forked": os.getppid() == 0,
                    "tmp": mount_of("/tmp"), "filter": status("Seccomp"), "caps": int(status("CapBnd"), 16),
                    "new_userns": refused(272, 0x10000000) if os.uname().machine == "x86_64" else ""}
        if do == "hog":
            return len(hog(event["mb"]))
        if do == "child hogs":
            pid = os.fork()
            if pid == 0:
                hog(event["mb"])
                os._exit(0)
            return os.waitpid(pid, 0)[1]
        if do == "fork":
            made = []
            try:
                while len(made) < event["most"]:
                    if (pid := os.fork()) == 0:
                        signal.pause()
                    made.append(pid)
            except OSError:
                return len(made)
            finally:
                for pid in made:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            return None
        if do == "spin":
            end = time.monotonic() + 1
            before = time.process_time()
            while time.monotonic() < end:
                pass
            return time.process_time() - before
        if do == "tick":
            if not ticks[0]:
                threading.Thread(target=tick, daemon=True).start()
            return ticks[0]
        if do == "fill /tmp":
            written = 0
            try:
                with open("/tmp/file", "wb", buffering=0) as file:
                    while written < event["mb"]:
                        file.write(bytes(1 << 20))
                        written += 1
            except OSError as exc:
                return [written, errno.errorcode[exc.errno]]
            finally:
                os.unlink("/tmp/file")
            return [written, ""]
        if do == "linger":
            for _ in range(20):
                if os.fork() == 0:
                    os.setsid()
                    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
                    while True:
                        time.sleep(60)
            time.sleep(60)
        if do == "network":
            return {"interfaces": [name for _, name in socket.if_nameindex()],
                    "namespace": os.stat("/proc/self/ns/net").st_ino}
        if do == "names":
            return names_answer()
        if do == "reach":
            return [reach(*place) for place in event["places"]]
"""

FUNCTIONS = {
    "look": "",
    "small": f"memory_size = {SMALL_MB}",
    "big": "memory_size = 1769\ntimeout = 90",
    "hog": "memory_size = 512",
    "tick": "",
    "linger": "timeout = 1",
    **{f"net-{kind}": f'network = "{kind}"' for kind in ("none", "nat", "host")},
    **{f"cold-{number}": "" for number in range(COLD_STARTS + 1)},
}


@dataclass(frozen=True, slots=True)
class Row:
    """What holds, and how it is on this host."""

    name: str
    found: str


def columns(config: Config) -> list[Row]:
    """The table of this host, some ten seconds long. Raises nothing that a host can do."""

    async def main() -> list[Row]:
        rows = [Row("host", _host())]
        try:
            doctor.require_sandbox(config)  # as serve does
            with tempfile.TemporaryDirectory(prefix="lambox-matrix-") as folder:
                _write(Path(folder))
                own = dataclasses.replace(
                    config, functions=Path(folder, "functions"), state=Path(folder, "state")
                )
                async with open_node(own) as node:
                    await _ask_all(Asker(node, own), rows)
        except (ConfineError, BaseExceptionGroup) as exc:
            reason = cause(exc)
            if not isinstance(reason, ConfineError):
                raise
            rows.append(Row("serves", f"{NO}: {reason}".replace("\n", "; ")))
        return rows

    return trio.run(main)


def markdown(rows: list[Row], title: str = "this host") -> str:
    lines = [f"| what holds | {title} |", "| --- | --- |"]
    lines += [f"| {row.name} | {row.found.replace('|', '/')} |" for row in rows]
    return "\n".join(lines)


def _host() -> str:
    if privilege.of_the_host():
        who = "root"
    elif privilege.owns_files():
        who = "root of a container"
    elif privilege.may_mount():
        who = "an ordinary user, in a user namespace of lambox's"
    else:
        who = "an ordinary user"
    return f"{who}, Linux {os.uname().release.split('-')[0]}"


def _write(folder: Path) -> None:
    folder.chmod(0o755)
    for name, toml in FUNCTIONS.items():
        place = folder / "functions" / name
        place.mkdir(parents=True)
        (place / "handler.py").write_text(textwrap.dedent(HANDLER))
        (place / "function.toml").write_text(
            f"timeout = 30\n{toml}\n" if "timeout" not in toml else toml
        )


class Asker:
    """One question to one function of the table's own."""

    def __init__(self, node: Node, config: Config) -> None:
        self.node = node
        self._config = config

    async def outcome(self, name: str, do: str, **event: Any) -> Outcome:
        function = self.node.functions.get(name)
        with trio.fail_after(ANSWER_LIMIT_S):
            return await self.node.invoke(
                Invocation(
                    function=function,
                    payload=json.dumps({"do": do, **event}).encode(),
                    invoked_arn=function.arn(self._config.region, self._config.account),
                    request_id=new_request_id(),
                    trace_id=read_trace_id(None),
                )
            )

    async def answer(self, name: str, do: str, **event: Any) -> Any:
        """Raises ConfineError with what the function or the platform said instead."""
        outcome = await self.outcome(name, do, **event)
        if outcome.status == "timeout":
            raise trio.TooSlowError
        if outcome.status != "success":
            raise ConfineError(f"{outcome.error_type}: {outcome.payload.decode()[:200]}")
        return json.loads(outcome.payload)


async def _ask_all(ask: Asker, rows: list[Row]) -> None:
    rows.append(Row("serves", re.sub(r" at /\S*(?=,|$)", "", ask.node.isolation)))
    questions: list[tuple[str, Callable[[Asker], Awaitable[str]]]] = [
        ("inside: sbx_user1051, no capability", _user_inside),
        ("a host uid per environment", _own_uid),
        ("system call filter", _filter),
        ("user namespaces inside", _nested),
        ("memory limit", _memory),
        ("out of memory ends the whole environment", _whole),
        ("limit of processes", _pids),
        ("cpu share", _cpu),
        ("idle environments stand still", _frozen),
        ("a timeout leaves no process", _killed),
        ("/tmp", _tmp),
        ('`network = "none"`', _none),
        ('`network = "nat"`', _nat),
        ('`network = "host"`', _hosts_own),
        ("made ahead: a zygote's fork", _forked),
        ("cold start, median of 5", _cold),
    ]
    for name, question in questions:
        try:
            found = await question(ask)
        except trio.TooSlowError:
            found = SLOW
        except (ConfineError, CallerError, PlatformFault) as exc:
            said = re.sub(r"^\S+/function\.toml: .* cannot be had on this host: ", "", str(exc))
            found = f"{NO}: {said}".replace("\n", "; ")
        rows.append(Row(name, found))


async def _user_inside(ask: Asker) -> str:
    said = await ask.answer("look", "look")
    ok = (said["uid"], said["gid"], said["caps"]) == (UID, GID, 0)
    return "yes" if ok else f"{NO}: {said['uid']}:{said['gid']}, {said['caps']:x}"


async def _own_uid(ask: Asker) -> str:
    for name in ("tick", "look"):
        await ask.answer(name, "look")
    own = privilege.host_uid()
    for _ in range(UID_LOOKS):
        uids = await trio.to_thread.run_sync(_uids_of_sandboxes)
        host = {privilege.host_uid(uid) for uid in uids}
        if len(host) > 1 and own not in host:
            return f"yes, {min(host)} and up"
        if host == {own}:
            return f"{NO}: all have {own}, the user's own"
        # One that is just being made ahead may not have changed to its own yet.
        await trio.sleep(UID_LOOK_S)
    return f"{NO}: some have {own}, the user's own"


def _uids_of_sandboxes() -> set[int]:
    """Of all our descendants in pid namespaces of their own."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        if strays.namespaces(child.pid) > strays.namespaces("self"):
            found |= identity.uids_of(child.pid)
    return found


async def _filter(ask: Asker) -> str:
    said = await ask.answer("look", "look")
    return "yes" if said["filter"] == "2" else NO


async def _nested(ask: Asker) -> str:
    said = (await ask.answer("look", "look"))["new_userns"]
    return f"refused ({said})" if said else "possible"


async def _memory(ask: Asker) -> str:
    outcome = await ask.outcome("hog", "hog", mb=1024)
    if outcome.status == "timeout":
        return SLOW
    if OUT_OF_MEMORY not in outcome.log_tail:
        return f"{NO}: {outcome.error_type or 'it had 1024 MB'}"
    return f"killed, {outcome.max_memory_mb} MB of 512 in use at most"


async def _whole(ask: Asker) -> str:
    outcome = await ask.outcome("hog", "child hogs", mb=1024)
    if outcome.status == "timeout":
        return SLOW
    return "yes" if OUT_OF_MEMORY in outcome.log_tail else f"{NO}: the hog alone"


async def _pids(ask: Asker) -> str:
    made = await ask.answer("big", "fork", most=1200)
    return NO if made is None else f"yes, at {made} besides the runtime's own"


async def _cpu(ask: Asker) -> str:
    """Beside a function of a whole core's memory, since the host may be busy."""
    used, whole = [await ask.answer(name, "spin") for name in ("small", "big")]
    share = SMALL_MB / 1769
    held = used < 3 * share and used < whole / 2
    return f"{'yes' if held else NO}: {used:.2f} s of one ({share:.2f} due; 1769 MB: {whole:.2f})"


async def _frozen(ask: Asker) -> str:
    before = await ask.answer("tick", "tick")
    await trio.sleep(1.0)
    ticks = await ask.answer("tick", "tick") - before
    return "yes" if ticks < 20 else f"{NO}: they go on"


async def _killed(ask: Asker) -> str:
    outcome = await ask.outcome("linger", "linger")
    if outcome.status != "timeout":
        raise ConfineError(f"no timeout: {outcome.status}")
    began = time.monotonic()
    while any(row["function"] == "linger" for row in ask.node.console.environments()):  # noqa: ASYNC110
        await trio.sleep(0.005)
    return f"yes, 22 processes in {(time.monotonic() - began) * 1000:.0f} ms after the answer"


async def _tmp(ask: Asker) -> str:
    kind = (await ask.answer("look", "look"))["tmp"]
    written, said = await ask.answer("big", "fill /tmp", mb=600)
    return f"{kind}, {said or 'no limit'} after {written} MB" + (
        ", counts as memory" if kind == "tmpfs" else ", counts as no memory"
    )


async def _network(ask: Asker, kind: str) -> tuple[list[str], bool]:
    """(its interfaces but loopback, whether it is the host's own network). A host may have loopback alone too."""
    said = await ask.answer(f"net-{kind}", "network")
    hosts_own = said["namespace"] == os.stat("/proc/self/ns/net").st_ino
    return [name for name in said["interfaces"] if name != "lo"], hosts_own


async def _none(ask: Asker) -> str:
    names, hosts_own = await _network(ask, "none")
    if hosts_own:
        return f"{NO}: it has the host's"
    return f"{NO}: it has {', '.join(names)}" if names else "yes"


async def _hosts_own(ask: Asker) -> str:
    _, hosts_own = await _network(ask, "host")
    return "yes" if hosts_own else f"{NO}: it has one of its own"


async def _nat(ask: Asker) -> str:
    """The outside is asked as far as any host has it: its name servers, by whoever leads or relays to them."""
    names, hosts_own = await _network(ask, "nat")
    if hosts_own:
        return f"{NO}: it has the host's"
    if not names:
        return f"{NO}: it has no interface"
    with _listening() as own:
        places = [METADATA, *own]
        found = await ask.answer("net-nat", "reach", places=places)
    for (address, _), said in zip(places, found, strict=True):
        if said not in REFUSALS:
            return f"{NO}: {address} is not refused ({said})"
    refused = f"{METADATA[0]}{' and the host itself' if own else ''} refused"
    if await ask.answer("net-nat", "names"):
        return f"yes, names answered, {refused}"
    if await ask.answer("net-host", "names"):
        return f"{NO}: names are answered on the host, and not inside"
    return f"yes, {refused}; this host's name servers do not answer"


@contextmanager
def _listening() -> Iterator[list[tuple[str, int]]]:
    """On each IPv4 address of the host but loopback's: of a port with nobody behind it a refusal shows nothing."""
    with ExitStack() as stack:
        found = []
        for addresses in psutil.net_if_addrs().values():
            for one in addresses:
                if one.family == socket.AF_INET and not one.address.startswith("127."):
                    with suppress(OSError):  # another server's, which has just ended
                        server = stack.enter_context(socket.create_server((one.address, 0)))
                        found.append((one.address, server.getsockname()[1]))
        yield found


async def _forked(ask: Asker) -> str:
    if not ask.node.console.prepared():
        return NO
    with trio.move_on_after(10):
        while not any(row["ready"] and row["program"] for row in ask.node.console.prepared()):  # noqa: ASYNC110
            await trio.sleep(0.02)
    outcome = await ask.answer("cold-0", "look")
    return "yes" if outcome["forked"] else NO


async def _cold(ask: Asker) -> str:
    times = []
    for number in range(1, COLD_STARTS + 1):
        await trio.sleep(0.3)
        began = time.monotonic()
        await ask.answer(f"cold-{number}", "tick")
        times.append((time.monotonic() - began) * 1000)
    return f"{statistics.median(times):.0f} ms"
