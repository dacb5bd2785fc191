"""Owns host uids: where we may change uids, every live sandbox has one of its own.

Several supervisors on one host share the range by slices. Who has one holds an abstract unix socket of its name:
the kernel lets go of it when the process is gone, however it went, and nothing is left on disk.

A uid is handed out only if nothing lives that has it. What a supervisor's own sandboxes had comes back when the
last process of the sandbox has been reaped, forks of a zygote included. What a dead supervisor's had may still be
dying when the next one takes over the slice: whoever is seen then in /proc keeps his uid to himself.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.confine import privilege
from sandbox.confine.spec import ConfineError, IsolationUnavailable

PREFERRED = range(1_900_000_000, 1_900_065_536)
"""Above what useradd, systemd's DynamicUser and subuid ranges hand out."""
FALLBACK_COUNT = 4096
SLICES, SMALLEST_SLICE = 16, 256
log = logging.getLogger(__name__)


class Identities:
    """Hands out uids (gid is the same number), the longest unused first; none where only one is ours."""

    def __init__(self, uids: Sequence[int] | None, held: socket.socket | None = None) -> None:
        """`held` is closed by `close`."""
        self._free = deque(uids or ())
        self._root = uids is not None
        self.count = len(uids or ())
        self._held = held

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    @property
    def any(self) -> bool:
        """Whether sandboxes get host uids of their own."""
        return self._root

    def take(self) -> int | None:
        """None: the sandbox keeps our own uid. Raises ConfineError when all are in use."""
        if not self._root:
            return None
        if not self._free:
            raise ConfineError("every host uid of the configured range is in use")
        return self._free.popleft()

    def give_back(self, uid: int | None) -> None:
        """Only once nothing that ran under it lives."""
        if uid is not None:
            self._free.append(uid)


def claim(uids: range | None) -> Identities:
    """A slice of the range that no other supervisor (of this network namespace) has."""
    if uids is None:
        return Identities(None)
    living = in_use()
    size = max(len(uids) // SLICES, SMALLEST_SLICE)
    for first in range(uids.start, uids.stop, size):
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0lambox-uids-{privilege.host_uid(first)}")
        except OSError:
            held.close()
        else:
            return Identities(_unused(range(first, min(first + size, uids.stop)), living), held)
    log.warning("uids from %d on are shared with another lambox of this host", uids.start)
    # From somewhere in the middle: two who share are unlikely to meet.
    turn = secrets.randbelow(len(uids))
    return Identities(_unused([*uids[turn:], *uids[:turn]], living))


def _unused(uids: Sequence[int], living: Collection[int]) -> list[int]:
    unused = [uid for uid in uids if uid not in living]
    if len(unused) < len(uids):
        log.info("%d uids are passed over: processes have them", len(uids) - len(unused))
    return unused


def in_use() -> set[int]:
    """The uids, real, effective, saved and of files, of all processes that we see."""
    return set().union(*(uids_of(path.name) for path in Path("/proc").glob("[0-9]*")))


def uids_of(pid: int | str) -> set[int]:
    """A process's uids; none once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return set(map(int, line.split()[1:]))
    return set()


def choose(base: int | None = None, count: int | None = None) -> range | None:
    """The range to use here: as configured, else the preferred one, else the top of what is mapped.

    In a container only uids of /proc/self/uid_map exist (user_namespaces(7)).
    """
    if not privilege.may_change_uid():
        return None
    mapped = privilege.mapped()
    if base is not None:
        wanted = range(base, base + (count or len(PREFERRED)))
        if not any(wanted[0] in part and wanted[-1] in part for part in mapped):
            raise IsolationUnavailable(
                f"uids {wanted[0]} to {wanted[-1]} (uid_base, uid_count) are not mapped here",
                "cat /proc/self/uid_map   (first column: the uids that there are)",
            )
        return wanted
    if any(PREFERRED[0] in part and PREFERRED[-1] in part for part in mapped):
        return PREFERRED
    largest = max(mapped, key=len, default=range(0))
    # The last uid of 16 bits is "nobody", the one before is often in use too.
    top = largest.stop - 2
    return range(max(top - FALLBACK_COUNT, 1000), top) if top > 2000 else None
