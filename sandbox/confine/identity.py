"""Owns host uids: where we may change uids, every live sandbox has one of its own.

Several supervisors on one host share the range (`claims`): each takes a share, and begins to look for one anywhere in
it, so that those who cannot see each other rarely meet.

A uid is handed out only if nothing lives that has it. What a supervisor's own sandboxes had comes back when the
last process of the sandbox has been reaped, forks of a zygote included. What a dead supervisor's had may still be
dying when the next one takes over the share: whoever is seen then in /proc keeps his uid to himself, until he is not
seen any more.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import trio

from sandbox.confine import claims, privilege
from sandbox.confine.claims import Claim
from sandbox.confine.spec import ConfineError, IsolationUnavailable

PREFERRED = range(1_900_000_000, 1_900_065_536)
"""Above what useradd, systemd's DynamicUser and subuid ranges hand out."""
LEAST_FALLBACK = 4096
MOST_SHARES, SMALLEST_SHARE = 16, 256
WAIT_LIMIT_S = 10.0
"""How long a sandbox to be made waits for one that ends."""
LOOK_S, LOOKS = 1.0, 10
"""When, and how often, uids that were passed over are looked for again."""
log = logging.getLogger(__name__)


class NoUid(ConfineError):
    """Every uid is in use, and none of them came free in time."""


class Identities:
    """Hands out uids (gid is the same number), the longest unused first; none where only one is ours."""

    def __init__(
        self,
        uids: Sequence[int] | None,
        held: Claim | None = None,
        passed_over: Collection[int] = (),
    ) -> None:
        """`held` is closed by `close`. `passed_over`: others that will be ours once nobody has them."""
        self._back, self._free = trio.open_memory_channel[int](math.inf)
        self._root = uids is not None
        self._held = held
        self._all = set(uids or ())
        self._kept: set[int] = set()
        self._passed_over = set(passed_over)
        for uid in uids or ():
            self._back.send_nowait(uid)

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    @property
    def any(self) -> bool:
        """Whether sandboxes get host uids of their own."""
        return self._root

    @property
    def count(self) -> float:
        """How many sandboxes can live at a time."""
        return len(self._all) - len(self._kept) if self._root else math.inf

    @property
    def free(self) -> float:
        """How many can be had now; less than none: so many wait."""
        if not self._root:
            return math.inf
        now = self._free.statistics()
        return now.current_buffer_used - now.tasks_waiting_receive

    async def take(self) -> int | None:
        """None: the sandbox keeps our own uid. Waits for one, first come first served. Raises NoUid."""
        if not self._root:
            return None
        with suppress(trio.WouldBlock):
            return self._free.receive_nowait()
        with trio.move_on_after(WAIT_LIMIT_S):
            return await self._free.receive()
        raise NoUid(
            f"all {len(self._all)} host uids are in use, and none came free within "
            f"{WAIT_LIMIT_S:.0f} s"
        )

    def give_back(self, uid: int | None) -> None:
        """Only once nothing that ran under it lives."""
        if uid is not None:
            self._kept.discard(uid)
            self._back.send_nowait(uid)

    def keep(self, uid: int | None) -> None:
        """What runs under it cannot be ended: not counted on, unless it is given back after all."""
        if uid is not None:
            self._kept.add(uid)

    async def regain(self) -> None:
        """Take what was passed over, once nobody has it any more; returns when there is nothing to wait for."""
        for _ in range(LOOKS):
            if not self._passed_over:
                return
            await trio.sleep(LOOK_S)
            ours = self._passed_over - await trio.to_thread.run_sync(in_use)
            self._passed_over -= ours
            self._all |= ours
            for uid in ours:
                self._back.send_nowait(uid)


def claim(uids: range | None, folder: Path | None = None) -> Identities:
    """A share of the range that no other supervisor has. Raises IsolationUnavailable. Blocks.

    `folder`: where claims are made, if not where all servers do.
    """
    if uids is None:
        return Identities(None)
    folder = folder or claims.folder()
    parts = shares(uids)
    turn = secrets.randbelow(len(parts))
    for share in (*parts[turn:], *parts[:turn]):
        held = claims.claim(share, folder)
        if held is not None:
            # Not before it is ours: what its former owner had started until then is seen.
            living = in_use() & set(share)
            if living:
                log.info("%d uids are passed over: processes have them", len(living))
            first = secrets.randbelow(len(share))
            unused = [uid for uid in (*share[first:], *share[:first]) if uid not in living]
            return Identities(unused, held, living)
    raise IsolationUnavailable(
        f"other servers of this host have all uids from {uids[0]} to {uids[-1]}",
        "lambox serve --uid-base N   (N: the first of a range that no server has)",
    )


def shares(uids: range) -> list[range]:
    """What servers get of it, one each: nearly equal, and none so small that it is of no use."""
    parts = max(1, min(MOST_SHARES, len(uids) // SMALLEST_SHARE))
    cuts = [len(uids) * part // parts for part in range(parts + 1)]
    return [uids[first:end] for first, end in pairwise(cuts)]


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
    # The last uid of 16 bits is "nobody", the one before is often in use too. The lower half is left to the
    # container's own users, or to other containers of the user whose range it is.
    top = largest.stop - 2
    count = max(top // 2, LEAST_FALLBACK)
    return range(max(top - count, 1000), top) if top > 2000 else None
