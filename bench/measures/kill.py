"""The deadline: when the caller is answered, and when no process of the environment is left.

Environments are made first, their processes taken hold of by pidfd (so that no pid can be taken for
another), then each function is told to hang, one after the other. One loop waits for all answers and
exits. Both latencies count from the deadline as the caller knows it: the moment of sending + timeout.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bench import examples, load, observe
from bench.load import Load
from bench.servers import Server
from bench.stage import Stage, pause

TIMEOUT_S = 1
GAP_S = 0.06
"""Between two deadlines: one kill is not to wait for another."""
STATS = ("p50", "p99")
WHEN = ("idle", "under load")
LOAD_CLIENTS = 4
PATIENCE_S = 20
BODY = b'{"hang": true}'


def measure_of(what: str, when: str) -> str:
    return f"deadline, {when}: {what}"


def deadlines(stage: Stage) -> None:
    def fill(folder: Path) -> None:
        examples.write(folder, "hang", stage.sizes.kills, f"timeout = {TIMEOUT_S}\n")
        examples.write(folder, "python")

    functions = stage.functions("hang", fill)
    for variant in stage.in_turn(stage.variants):
        with stage.lambox(variant, functions) as server:
            for when in WHEN:
                stage.ask(server, "hang-%d", count=stage.sizes.kills, clients=2)
                server.settled(stage.sizes.kills, 3)
                with _load(stage, server) if when == "under load" else contextlib.nullcontext():
                    _kill_all(stage, server, when)
                pause(0.3)


@contextlib.contextmanager
def _load(stage: Stage, server: Server) -> Iterator[None]:
    stage.ask(server, "python-0", clients=LOAD_CLIENTS, burst=True)
    seconds = TIMEOUT_S + stage.sizes.kills * GAP_S + PATIENCE_S
    hammering = Load(server.port, server.path("python-0"), LOAD_CLIENTS, seconds=seconds)
    with load.in_background(hammering), _ahead():
        pause(0.2)
        yield


@contextlib.contextmanager
def _ahead() -> Iterator[None]:
    """The watcher sleeps nearly all the time; it is not to wait for a core behind what it watches."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)


def _kill_all(stage: Stage, server: Server, when: str) -> None:
    trees = {name: tree for tree in observe.trees(server.process.pid) for name in tree.names}
    with contextlib.ExitStack() as stack:
        watched = [
            stack.enter_context(Victim(server, f"hang-{number}", tree.pids))
            for number in range(stage.sizes.kills)
            if (tree := trees.get(f"hang-{number}"))
        ]
        _watch(watched)
    told = [victim for victim in watched if victim.timed_out]
    gone = [victim for victim in watched if victim.reaped_at and victim.pids]
    for what, samples in (
        ("caller answered", [victim.since(victim.answered_at) for victim in told]),
        ("tree ended", [victim.since(victim.ended_at) for victim in gone]),
        ("tree gone and reaped", [victim.since(victim.reaped_at) for victim in gone]),
    ):
        errors = stage.sizes.kills - len(samples)
        stage.add(measure_of(what, when), server.who, samples, STATS, errors=errors)
    sizes = sorted({len(victim.pids) for victim in watched})
    stage.record.note(f"deadlines: trees of {' or '.join(map(str, sizes))} processes each")


class Victim:
    """One environment on its way to its deadline. Owns a connection and its processes' pidfds."""

    def __init__(self, server: Server, function: str, pids: list[int]) -> None:
        self.pids = pids
        self.sent_at = self.answered_at = self.ended_at = self.reaped_at = 0.0
        self.timed_out = False
        self.living: set[int] = set()
        """pidfds of processes that run."""
        self.zombies: set[int] = set()
        head = (
            f"POST {server.path(function)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        )
        self._request = head.encode() + BODY
        self._port = server.port
        self._text = b""

    def __enter__(self) -> Victim:
        self._fds = [os.pidfd_open(pid) for pid in self.pids]
        self.living = set(self._fds)
        self.socket = socket.create_connection(("127.0.0.1", self._port))
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()
        for fd in self._fds:
            os.close(fd)

    def send(self) -> None:
        self.sent_at = time.monotonic()
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Whether the answer is complete now; a head may come before its body."""
        part = self.socket.recv(65536)
        self._text += part
        head, found, body = self._text.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        if part and not (found and length and len(body) >= int(length[1])):
            return False
        self.answered_at = time.monotonic()
        self.timed_out = b"Task timed out" in body
        return True

    def look(self) -> None:
        """Take note of what has been reaped since."""
        self.zombies = {fd for fd in self.zombies if not observe.reaped(fd)}
        if not self.living and not self.zombies and not self.reaped_at:
            self.reaped_at = time.monotonic()

    def since(self, moment: float) -> float:
        """Milliseconds after the deadline."""
        return (moment - self.sent_at - TIMEOUT_S) * 1000

    @property
    def done(self) -> bool:
        return bool(self.answered_at and self.reaped_at)


def _watch(victims: list[Victim]) -> None:
    poll = select.epoll()
    owners: dict[int, Victim] = {}
    for victim in victims:
        for fd in [*victim.living, victim.socket.fileno()]:
            poll.register(fd, select.EPOLLIN)
            owners[fd] = victim
    start = time.monotonic()
    unsent = list(victims)
    try:
        while not all(victim.done for victim in victims):
            now = time.monotonic()
            if now > start + TIMEOUT_S + len(victims) * GAP_S + PATIENCE_S:
                break
            due = start + (len(victims) - len(unsent)) * GAP_S
            if unsent and now >= due:
                unsent.pop(0).send()
                continue
            impatient = any(victim.zombies for victim in victims)
            wait = 0.0003 if impatient else max(0.0, due - now) if unsent else 0.1
            for fd, _ in poll.poll(wait):
                victim = owners[fd]
                if fd in victim.living:
                    poll.unregister(fd)
                    victim.living.remove(fd)
                    victim.zombies.add(fd)
                    victim.ended_at = time.monotonic()
                elif victim.receive():
                    poll.unregister(fd)
            for victim in victims:
                if victim.zombies:
                    victim.look()
    finally:
        poll.close()
