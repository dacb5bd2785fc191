"""SandboxSpec -> bubblewrap's command line. Nothing is started."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootfs.layout import Bind, Dev, Directory, Entry, Proc, Symlink, Text, Tmpfs
from sandbox.confine import bwrap
from sandbox.confine.bwrap import Bwrap, Descriptors
from sandbox.confine.spec import IsolationUnavailable, SandboxSpec
from sandbox.confine.staging import Bridge

TOOL = Bwrap("/usr/bin/bwrap", (0, 8, 0))
CONTROL = 777


@pytest.fixture
def fds() -> Iterator[Descriptors]:
    with Descriptors() as descriptors:
        yield descriptors


def command(
    fds: Descriptors,
    *root: Entry,
    network: str = "none",
    seccomp: bytes | None = None,
    observe: bytes | None = None,
    places: dict[str, Bridge] | None = None,
) -> list[str]:
    spec = SandboxSpec("name", root, network=network)  # type: ignore[arg-type]
    return bwrap.command(
        spec,
        TOOL,
        "/host/init",
        CONTROL,
        fds,
        seccomp=seccomp,
        observe=observe,
        places=places or {},
    )


def holds(argv: list[str], *words: str) -> bool:
    """Whether the words stand in argv one after the other."""
    return any(tuple(argv[at : at + len(words)]) == words for at in range(len(argv)))


def read(fd: str) -> bytes:
    return os.pread(int(fd), 1 << 20, 0)


def test_what_every_sandbox_has(fds: Descriptors) -> None:
    argv = command(fds)
    assert argv[0] == "/usr/bin/bwrap"
    for kind in ("user", "ipc", "pid", "uts", "cgroup", "net"):
        assert f"--unshare-{kind}" in argv
    for words in (
        ("--die-with-parent",),
        ("--new-session",),
        ("--as-pid-1",),
        ("--disable-userns",),
        ("--clearenv",),
        ("--cap-drop", "ALL"),
        ("--uid", "993"),
        ("--gid", "990"),
        ("--hostname", "sandbox"),
    ):
        assert holds(argv, *words), words
    assert not [word for word in argv if word.endswith("-try")]  # all of it, or nothing


def test_the_host_network_is_shared_only_when_asked(fds: Descriptors) -> None:
    own, shared = command(fds), command(fds, network="host")
    assert "--unshare-net" in own
    assert "--unshare-net" not in shared
    # On the shared loopback the kernel chooses the port.
    assert own[-2:] == ["127.0.0.1", "9001"]
    assert shared[-2:] == ["127.0.0.1", "0"]


def test_the_program_is_our_pid_1(fds: Descriptors) -> None:
    argv = command(fds)
    inside = argv[argv.index("--") + 1 :]
    assert inside == [bwrap.INIT_INSIDE, "run", str(CONTROL), "127.0.0.1", "9001"]
    assert holds(argv, "--ro-bind", "/host/init", bwrap.INIT_INSIDE)


def test_the_root_is_sealed_after_everything_is_in_place(fds: Descriptors) -> None:
    argv = command(fds, Directory("/opt"), Dev(), seccomp=b"filter")
    sealed = argv.index("/", argv.index("--") - 4)
    assert holds(argv, "--remount-ro", "/")
    mounting = ("--ro-bind", "--dir", "--dev", "--proc", "--tmpfs", "--symlink", "--ro-bind-data")
    last = max(at for at, word in enumerate(argv) if word in mounting)
    assert last < sealed


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Bind("/srv/code", "/var/task"), ("--ro-bind", "/srv/code", "/var/task")),
        (Symlink("usr/bin", "/bin"), ("--symlink", "usr/bin", "/bin")),
        (Directory("/opt"), ("--dir", "/opt")),
        (Proc(), ("--proc", "/proc")),
        (
            Proc("/proc", ("/proc/keys",)),
            ("--proc", "/proc", "--ro-bind", "/dev/null", "/proc/keys"),
        ),
        (
            Proc("/proc", (), ("/proc/fs",)),
            (
                *("--proc", "/proc", "--perms", "0555", "--size", "4096"),
                *("--tmpfs", "/proc/fs", "--remount-ro", "/proc/fs"),
            ),
        ),
        (Dev(), ("--dev", "/dev")),
        (Dev(), ("--remount-ro", "/dev")),
        (Tmpfs("/tmp", 512), ("--perms", "1777", "--size", "512", "--tmpfs", "/tmp")),
        (Tmpfs("/x", 9, 0o755), ("--perms", "0755", "--size", "9", "--tmpfs", "/x")),
    ],
)
def test_entries(fds: Descriptors, entry: Entry, words: tuple[str, ...]) -> None:
    assert holds(command(fds, entry), *words)


def test_entries_stay_in_order(fds: Descriptors) -> None:
    argv = command(fds, Bind("/a", "/x"), Directory("/x/y"), Bind("/b", "/x/y/z"))
    assert argv.index("/a") < argv.index("/x/y") < argv.index("/b")


def test_nothing_is_bound_writable_or_with_devices(fds: Descriptors) -> None:
    argv = command(fds, Bind("/a", "/b"), Text("x", "/c"), Dev())
    assert not {"--bind", "--dev-bind", "--bind-fd", "--bind-data", "--file", "--cap-add"} & {*argv}


def test_a_text_goes_through_a_descriptor(fds: Descriptors) -> None:
    argv = command(fds, Text("one\n", "/etc/one"), Text("zwei ü\n", "/etc/two"))
    found = {argv[at + 2]: argv[at + 1] for at, word in enumerate(argv) if word == "--ro-bind-data"}
    assert {path: read(fd) for path, fd in found.items()} == {
        "/etc/one": b"one\n",
        "/etc/two": "zwei ü\n".encode(),
    }
    assert holds(argv, "--perms", "0444", "--ro-bind-data")
    assert {int(fd) for fd in found.values()} <= set(fds.fds)


def test_log_modes_filter_is_loaded_by_pid_1(fds: Descriptors) -> None:
    argv = command(fds, observe=b"filter")
    assert "--seccomp" not in argv
    assert argv[-6:-3] == ["run", str(CONTROL), "127.0.0.1"]
    assert argv[-2] == "-1"  # nothing is parked
    assert read(argv[-1]) == b"filter"
    assert command(fds)[-4:] == ["run", str(CONTROL), "127.0.0.1", "9001"]


def test_every_launch_has_a_filter_descriptor_of_its_own(fds: Descriptors) -> None:
    """bwrap reads to the end of file: a shared offset would leave the second without a filter."""
    first, second = (command(fds, seccomp=b"filter") for _ in range(2))
    one, two = (argv[argv.index("--seccomp") + 1] for argv in (first, second))
    assert one != two
    assert os.read(int(one), 100) == b"filter"
    assert os.read(int(two), 100) == b"filter"
    assert "--seccomp" not in command(fds)


def test_sources_are_taken_from_where_they_were_bridged_to(fds: Descriptors) -> None:
    places = {"/root/code": Bridge("/root/code", "/run/lambox-name/0")}
    argv = command(fds, Bind("/root/code", "/var/task"), Bind("/usr", "/usr"), places=places)
    assert holds(argv, "--ro-bind", "/run/lambox-name/0", "/var/task")
    assert holds(argv, "--ro-bind", "/usr", "/usr")
    assert "/root/code" not in argv


def test_every_source_is_listed() -> None:
    spec = SandboxSpec("name", (Bind("/a", "/x"), Text("t", "/y"), Bind("/b", "/z")))
    assert bwrap.sources(spec, "/host/init") == ["/a", "/b", "/host/init"]


def test_descriptors_keep_clear_of_the_programs() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Descriptors() as fds:
        high = fds.take(os.open("/dev/null", os.O_RDONLY))
        data = fds.data(b"abc")
        assert min(high, data) >= bwrap.LOWEST_FD > 62
        assert not os.get_inheritable(high)
        assert stat.S_ISCHR(os.fstat(high).st_mode)
    assert set(os.listdir("/proc/self/fd")) == before


Fake = Callable[[str], str]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    def make(says: str) -> str:
        path = tmp_path / "bwrap"
        path.write_text(f"#!/bin/sh\n{says}\n")
        path.chmod(0o755)
        return str(path)

    bwrap.find.cache_clear()
    yield make
    bwrap.find.cache_clear()


def test_a_bwrap_is_found(fake: Fake) -> None:
    path = fake("echo bubblewrap 0.11.0")
    assert bwrap.find(path) == Bwrap(path, (0, 11, 0))


@pytest.mark.parametrize(
    "says", ["echo bubblewrap 0.7.9", "echo bubblewrap 0.4", "exit 1", "echo", "echo something"]
)
def test_a_bwrap_that_will_not_do(fake: Fake, says: str) -> None:
    with pytest.raises(IsolationUnavailable) as caught:
        bwrap.find(fake(says))
    assert caught.value.remedy == "apt-get install bubblewrap"


def test_no_bwrap() -> None:
    bwrap.find.cache_clear()
    with pytest.raises(IsolationUnavailable, match="cannot be run"):
        bwrap.find("/nowhere/bwrap")
