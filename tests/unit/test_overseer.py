"""Log mode's judgement and its account; the kernel's side of it is in tests/system/test_seccomp.py."""

from __future__ import annotations

import errno
import platform
from pathlib import Path

import pytest

from sandbox.confine import bpf, overseer, seccomp
from sandbox.confine.overseer import Asked, Watch
from sandbox.confine.seccomp import Filters
from sandbox.confine.spec import IsolationUnavailable

pytest.importorskip("pyseccomp", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="host: call numbers of x86-64"
)
X86_64 = 0xC000003E
SHMGET, PTRACE, SOCKET, VMSPLICE, CLONE3 = 29, 101, 41, 278, 435


@pytest.fixture(scope="module")
def filters() -> Filters:
    return seccomp.filters("log")


def judged(watch: Watch, number: int, *arguments: int) -> int:
    return watch._judge(bpf.CALL.pack(number, X86_64, 0, *(*arguments, *[0] * 6)[:6]))


async def test_what_only_the_list_lacks_goes_on_and_danger_does_not(filters: Filters) -> None:
    watch = Watch(-1, "python", filters)
    assert judged(watch, SHMGET) == judged(watch, VMSPLICE) == 0
    assert judged(watch, PTRACE) == errno.EPERM
    assert judged(watch, SOCKET, 17, 3, 768) == errno.EAFNOSUPPORT
    assert judged(watch, CLONE3) == errno.ENOSYS


async def test_calls_of_newer_kernels_get_enosys_and_are_one(filters: Filters) -> None:
    """Or a function could fill the supervisor's memory with numbers."""
    watch = Watch(-1, "python", filters)
    for number in range(2000, 12_000):
        assert judged(watch, number) == errno.ENOSYS
    (asked,) = watch.asked()
    assert asked.count == 10_000
    assert asked.line() == (
        "seccomp: system call 2000, unknown here, is refused (ENOSYS), in log mode too"
    )


async def test_arguments_are_shown_but_make_no_difference(filters: Filters) -> None:
    watch = Watch(-1, "python", filters)
    for family in range(17, 40):
        judged(watch, SOCKET, family, 3, 768)
    (asked,) = watch.asked()
    assert asked.line().startswith("seccomp: socket(0x11, 0x3, 0x300) is refused (EAFNOSUPPORT)")


async def test_each_kind_is_told_once_of_the_past_too(filters: Filters) -> None:
    watch, told = Watch(-1, "python", filters), list[str]()
    judged(watch, SHMGET)
    judged(watch, SHMGET)

    def tell(asked: Asked) -> None:
        told.append(asked.name)

    watch.tell(tell)
    assert told == ["shmget"]
    judged(watch, PTRACE)
    judged(watch, SHMGET)
    judged(watch, PTRACE)
    assert told == ["shmget", "ptrace"]
    assert [asked.count for asked in watch.asked()] == [3, 2]


@pytest.mark.parametrize(
    ("asked", "line", "total"),
    [
        (
            Asked("shmget", "", "python", 0, 1),
            "seccomp: shmget would be refused by the filter for python",
            "seccomp: shmget would have been refused once in this environment",
        ),
        (
            Asked("socket", "(0x11)", "nodejs", errno.EAFNOSUPPORT, 12),
            "seccomp: socket(0x11) is refused (EAFNOSUPPORT), in log mode too",
            "seccomp: socket(0x11) was refused 12 times in this environment",
        ),
    ],
)
def test_lines(asked: Asked, line: str, total: str) -> None:
    assert (asked.line(), asked.total()) == (line, total)


@pytest.mark.parametrize(
    ("release", "actions", "able"),
    [
        ("5.5.0", "kill_process errno user_notif allow", True),
        ("6.18.44-fc-v657", "user_notif allow", True),
        ("5.4.0-100-generic", "user_notif allow", False),
        ("6.1.0", "errno allow", False),
        ("6.1.0", None, False),
    ],
)
def test_where_log_mode_can_be(
    tmp_path: Path, release: str, actions: str | None, able: bool
) -> None:
    file = tmp_path / "actions"
    if actions is not None:
        file.write_text(actions + "\n")
    if able:
        overseer.require(release, str(file))
        return
    with pytest.raises(IsolationUnavailable, match=r"needs Linux 5\.5") as caught:
        overseer.require(release, str(file))
    assert caught.value.remedy == "lambox serve --seccomp enforce"
