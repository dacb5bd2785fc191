"""Owns host uids: started by root, every live sandbox has one of its own.

Several supervisors on one host share the range by slices. Who has one holds an abstract unix socket of its name:
the kernel lets go of it when the process is gone, however it went, and nothing is left on disk.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from pathlib import Path

from sandbox.confine.spec import ConfineError

PREFERRED = range(1_900_000_000, 1_900_065_536)
"""Above what useradd, systemd's DynamicUser and subuid ranges hand out."""
FALLBACK_COUNT = 4096
SLICES, SMALLEST_SLICE = 16, 256
log = logging.getLogger(__name__)


class Identities:
    """Hands out uids (gid is the same number), the longest unused first; none for a user who is not root."""

    def __init__(self, uids: range | None, held: socket.socket | None = None) -> None:
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
    size = max(len(uids) // SLICES, SMALLEST_SLICE)
    for first in range(uids.start, uids.stop, size):
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0lambox-uids-{first}")
        except OSError:
            held.close()
        else:
            return Identities(range(first, min(first + size, uids.stop)), held)
    log.warning("uids from %d on are shared with another lambox of this host", uids.start)
    return Identities(uids)


def choose(base: int | None = None, count: int | None = None) -> range | None:
    """The range to use here: as configured, else the preferred one, else the top of what is mapped.

    In a container only uids of /proc/self/uid_map exist (user_namespaces(7)).
    """
    if os.geteuid() != 0:
        return None
    if base is not None:
        return range(base, base + (count or len(PREFERRED)))
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    mapped = [range(int(a), int(a) + int(n)) for a, _, n in (line.split() for line in lines)]
    if any(PREFERRED[0] in part and PREFERRED[-1] in part for part in mapped):
        return PREFERRED
    largest = max(mapped, key=len, default=range(0))
    # The last uid of 16 bits is "nobody", the one before is often in use too.
    top = largest.stop - 2
    return range(max(top - FALLBACK_COUNT, 1000), top) if top > 2000 else None
