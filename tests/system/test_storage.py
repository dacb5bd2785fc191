"""/tmp on disk: exactly so large, no memory, nobody else's, and gone with whoever had it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from sandbox.confine import images, loops, mounts, privilege
from sandbox.confine.images import BLOCK, Images
from sandbox.confine.launcher import open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.process import KILL_LIMIT_S
from sandbox.confine.spec import MIB, ConfineError, IsolationUnavailable
from sandbox.confine.storage import Storage, open_storage, try_out
from tests.system.confine_fixtures import MAKING, confined, nothing_left
from tests.system.conftest import Start
from tests.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.optional]
NAME = f"lambox-{os.getpid()}-test"


@pytest.fixture(scope="module", autouse=True)
def disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no /tmp can be on disk: not the host's root, no loop devices, no disk below."""
    try:
        try_out(Images(tmp_path_factory.mktemp("try"), NAME))
    except IsolationUnavailable as exc:
        lacks = ("there are no loop devices", "is itself in memory")
        if privilege.of_the_host() and not any(words in str(exc) for words in lacks):
            raise
        pytest.skip(f"no /tmp on disk: {exc}")


class Roomy(Images):
    """For tests that write little into much, on a disk that may have less."""

    def _check_room(self, size: int) -> None:
        pass


Make = Callable[[int], str]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(bytes) -> path of the root of a fresh file system, closed at the end."""
    found = Roomy(tmp_path / "images", NAME)
    with contextlib.ExitStack() as stack:

        def fresh(size: int) -> str:
            fd = found.make(size)
            stack.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        yield fresh
    until(lambda: not ours())


def ours() -> list[str]:
    """Loop devices of this process."""
    return [device for device, name in loops.named().items() if f"lambox-{os.getpid()}-" in name]


def fill(path: str) -> int:
    """How many bytes go into a file before the disk is full."""
    written = 0
    with open(path, "wb", buffering=0) as file:
        for chunk in (MIB, BLOCK):
            try:
                while True:
                    written += file.write(b"x" * chunk)
            except OSError as exc:
                assert exc.errno == errno.ENOSPC  # noqa: PT017
    return written


# --- the file system


def test_what_is_written_fits_exactly(make: Make) -> None:
    place = make(32 * MIB)
    free = os.statvfs(place)
    assert free.f_bavail * free.f_frsize == 32 * MIB
    assert fill(f"{place}/all") == 32 * MIB
    with pytest.raises(OSError, match="No space left"), open(f"{place}/more", "wb", 0) as file:
        file.write(b"x")
    os.unlink(f"{place}/all")
    # One for the extents, if the freed room is in many pieces.
    assert 32 * MIB - fill(f"{place}/again") in (0, BLOCK)


@pytest.mark.parametrize("size_mb", [512, 1024, 10240])
def test_what_is_allocated_fits_exactly(make: Make, size_mb: int) -> None:
    place = make(size_mb * MIB)
    with open(f"{place}/all", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_mb * MIB)
        with pytest.raises(OSError, match="No space left"):
            os.posix_fallocate(file.fileno(), size_mb * MIB, BLOCK)
    assert os.statvfs(place).f_bavail == 0


def test_a_large_one_takes_no_room_while_it_is_empty(tmp_path: Path) -> None:
    class Weighed(Roomy):
        real: int

        def _mount(self, image: int) -> int:
            fd = super()._mount(image)
            self.real = os.fstat(image).st_blocks * 512
            assert os.fstat(image).st_size > 10240 * MIB
            assert os.fstat(image).st_nlink == 0
            return fd

    found = Weighed(tmp_path / "images", NAME)
    os.close(found.make(10240 * MIB))
    assert found.real < MIB
    assert os.listdir(tmp_path / "images") == []


def test_the_root_is_empty_and_as_awss(make: Make) -> None:
    place = make(8 * MIB)
    assert os.listdir(place) == []
    assert os.stat(place).st_mode == 0o41777
    os.mkdir(f"{place}/theirs")
    assert os.listdir(make(8 * MIB)) == []


def test_files_are_bounded_in_number(make: Make) -> None:
    place = make(8 * MIB)
    with contextlib.suppress(OSError):
        for number in range(2000):
            os.close(os.open(f"{place}/{number}", os.O_CREAT))
    with pytest.raises(OSError, match="No space left"):
        os.open(f"{place}/one more", os.O_CREAT)
    assert 1000 < len(os.listdir(place)) <= 1024
    os.unlink(f"{place}/0")
    os.close(os.open(f"{place}/0", os.O_CREAT))


def test_the_disk_below_is_full(make: Make) -> None:
    """The function gets an error, and the next /tmp is not promised what is not there."""
    below = make(64 * MIB)
    above = Images(Path(below) / "images", NAME)
    fd = above.make(32 * MIB)
    try:
        fill(f"{below}/others")
        with open(f"/proc/self/fd/{fd}/file", "wb", buffering=0) as file:
            file.write(bytes(16 * MIB))
            with pytest.raises(OSError, match=r"No space left|Input/output error"):
                os.fsync(file.fileno())
        with pytest.raises(OSError, match="MB are free"):
            above.make(32 * MIB)
        os.unlink(f"{below}/others")
        os.close(above.make(32 * MIB))
    finally:
        os.close(fd)


def test_without_mkfs_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PATH", str(tmp_path))
    with pytest.raises(IsolationUnavailable, match="apt-get install e2fsprogs"):
        try_out(Images(tmp_path / "images", NAME))


def test_a_folder_in_memory_is_no_disk(tmp_path: Path) -> None:
    fd = mounts.new_mount("tmpfs", "tmpfs", {})
    try:
        with pytest.raises(IsolationUnavailable, match="is itself in memory"):
            try_out(Images(Path(f"/proc/self/fd/{fd}/images"), NAME))
    finally:
        os.close(fd)


def test_a_taken_device_is_no_trouble(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a free number may find it taken when he comes."""
    make(8 * MIB)
    (taken,) = ours()
    given = iter([taken])
    real = loops.fcntl.ioctl

    def ioctl(fd: int, request: int, *args: object) -> object:
        if request == loops.LOOP_CTL_GET_FREE and (first := next(given, None)):
            return int(first.removeprefix("/dev/loop"))
        return real(fd, request, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(loops.fcntl, "ioctl", ioctl)
    assert os.listdir(make(8 * MIB)) == []
    assert len(ours()) == 2


def test_a_taken_device_that_dev_has_no_node_for_leaves_none(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container. Two nodes are made, one for the number that somebody else was faster at."""
    make(8 * MIB)
    (taken,) = ours()
    given = iter([taken])
    real, real_open = loops.fcntl.ioctl, os.open
    asked: list[str] = []

    def ioctl(fd: int, request: int, *args: object) -> object:
        if request == loops.LOOP_CTL_GET_FREE and (first := next(given, None)):
            return int(first.removeprefix("/dev/loop"))
        return real(fd, request, *args)  # type: ignore[call-overload]

    def without_nodes(path: str, flags: int, *args: int) -> int:
        asked.append(path)
        if path.startswith("/dev/loop") and path != loops.CONTROL:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return real_open(path, flags, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loops.fcntl, "ioctl", ioctl)
        patch.setattr(loops.os, "open", without_nodes)
        root = make(8 * MIB)
    assert len([path for path in asked if path.startswith(f"{tmp_path}/images/loop")]) == 2
    assert os.listdir(tmp_path / "images") == []
    assert os.listdir(root) == []


# --- which kind there is


async def test_no_loop_devices_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "CONTROL", "/dev/no-loop-control")
    with pytest.raises(IsolationUnavailable, match="modprobe loop"):
        async with open_storage("disk", tmp_path):
            pass
    async with open_storage("auto", tmp_path) as storage:
        assert storage.describe() == "/tmp in memory"
        tmp = await storage.take(8 * MIB)
        space = os.statvfs(tmp.fd)
        assert (tmp.medium, space.f_bavail * space.f_frsize) == ("memory", 8 * MIB)
        await tmp.kill()
    assert caplog.text.count("Hint: modprobe loop") == 1


@contextlib.contextmanager
def exhausted(folder: Path) -> Iterator[None]:
    """No loop device is free for us: somebody takes each number we are told. `folder`: for his image.

    That none is left at all cannot be had: the kernel makes as many as memory allows.
    """
    real = loops.fcntl.ioctl
    (folder / "others").write_bytes(bytes(MIB))
    image = os.open(folder / "others", os.O_RDWR)
    info = loops.INFO.pack(*[0] * 8, loops.LO_FLAGS_AUTOCLEAR, b"others", *[b""] * 2, 0, 0)
    wanted = loops.CONFIG.pack(image, BLOCK, info, b"")

    def ioctl(fd: int, request: int, *args: object) -> object:
        said = real(fd, request, *args)  # type: ignore[call-overload]
        if request == loops.LOOP_CTL_GET_FREE:
            taken = loops._open(said, str(folder))
            stack.callback(taken.close)
            with contextlib.suppress(OSError):  # taken by one of the machine's own others
                real(taken.fd, loops.LOOP_CONFIGURE, wanted)
        return said

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        stack.callback(os.close, image)
        patch.setattr(loops, "TRIES", 2)  # he keeps what he has
        patch.setattr(loops.fcntl, "ioctl", ioctl)
        yield


async def test_no_device_free_is_told_once_and_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with exhausted(tmp_path):
        async with open_storage("auto", tmp_path) as storage:
            assert await kinds(storage, 2) == ["memory", "memory"]
    async with open_storage("auto", tmp_path) as storage:
        with exhausted(tmp_path):
            assert await kinds(storage, 2) == ["memory", "memory"]
        assert await kinds(storage, 2) == ["disk", "disk"]
    assert caplog.text.count("can be made on disk") == 2
    assert caplog.text.count("/tmp is on disk again") == 1


async def kinds(storage: Storage, count: int) -> list[str]:
    found = []
    for _ in range(count):
        tmp = await storage.take(8 * MIB)
        found.append(tmp.medium)
        await tmp.kill()
    return found


async def test_where_a_disk_is_required_memory_does_not_do(tmp_path: Path) -> None:
    async with open_storage("disk", tmp_path) as storage:
        with exhausted(tmp_path), pytest.raises(ConfineError, match="others are faster"):
            await storage.take(8 * MIB)
        assert await kinds(storage, 1) == ["disk"]


async def test_some_are_kept_ready_and_all_are_given_back(tmp_path: Path) -> None:
    with nothing_left(), trio.fail_after(20):
        async with open_storage("auto", tmp_path / "images", ready=PoolLimits(2, 4)) as storage:
            storage.keep([8 * MIB])
            while len(ours()) < 2:  # noqa: ASYNC110  the pool tells nobody
                await trio.sleep(0.001)
            taken = [await storage.take(8 * MIB) for _ in range(6)]
            assert len({os.fstat(tmp.fd).st_dev for tmp in taken}) == 6
    assert ours() == []
    assert os.listdir(tmp_path / "images") == []


# --- in a sandbox


@pytest.fixture(params=["scratch", "ready", "forked"])
def disks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The ways in which a sandbox comes about; where their images lie."""
    token = MAKING.set(request.param)
    yield tmp_path / "images"
    MAKING.reset(token)


async def test_more_than_the_memory_goes_into_tmp(disks: Path) -> None:
    async with confined(images=disks, tmp_bytes=160 * MIB, memory_bytes=48 * MIB) as box:
        await box.python("""
            written, why = 0, []
            with open("/tmp/big", "wb", buffering=0) as file:
                for chunk in (1 << 20, 4096):
                    try:
                        while True:
                            written += file.write(b"x" * chunk)
                    except OSError as exc:
                        why += [errno.errorcode[exc.errno]]
            say([written, why, os.statvfs("/tmp").f_bavail])
            signal.pause()
        """)
        written, why, left = await box.heard()
        assert 160 * MIB - written in (0, BLOCK)  # one for the extents, if they are many
        assert (why, left) == (["ENOSPC", "ENOSPC"], 0)
        assert box.sandbox.tmp == "disk"
        assert box.sandbox.oom_kills() == 0


async def test_what_was_not_written_yet_does_not_hold_up_the_kill(disks: Path) -> None:
    async with confined(images=disks, tmp_bytes=160 * MIB, memory_bytes=256 * MIB) as box:
        await box.ask("""open("/tmp/big", "wb").write(b"x" * (100 << 20))""")
        began = time.perf_counter()
        assert (await box.sandbox.kill()).killed
        assert time.perf_counter() - began < KILL_LIMIT_S
    assert ours() == []


async def test_the_mount_and_its_file_system_give_no_way_out(disks: Path) -> None:
    async with confined(images=disks) as box:
        found = await box.ask("""(
            lambda fd: {
                "mount": [line.split()[5] for line in open("/proc/self/mountinfo") if " /tmp " in line],
                "kind": [line.split()[2] for line in open("/proc/mounts") if " /tmp " in line],
                "entries": os.listdir("/tmp"),
                "node": attempt(os.mknod, "/tmp/node", 0o60666, os.makedev(7, 0)),
                "devices": [name for name in os.listdir("/dev") if "loop" in name],
                "owner": attempt(os.chown, "/tmp/x", 0, 0),
                "suid": [os.chmod("/tmp/x", 0o6755), oct(os.stat("/tmp/x").st_mode)],
                "sparse": [os.ftruncate(fd, 1 << 40), os.stat("/tmp/x").st_blocks],
                "immutable": attempt(fcntl.ioctl, fd, 0x40086602, struct.pack("=Q", 0x10)),
                "freeze": attempt(fcntl.ioctl, fd, 0xC0045877, 0),
                "trim": attempt(fcntl.ioctl, fd, 0xC0185879, bytearray(24)),
                "shutdown": attempt(fcntl.ioctl, fd, 0x8004587D, struct.pack("=I", 0)),
                "resize": attempt(fcntl.ioctl, fd, 0x40086610, struct.pack("=Q", 1 << 20)),
                "swap boot": attempt(fcntl.ioctl, fd, 0x6611, 0),
                "trusted": attempt(os.setxattr, "/tmp/x", "trusted.a", b"1"),
                "user": attempt(os.setxattr, "/tmp/x", "user.a", b"1" * 4000),
                "too much": attempt(os.setxattr, "/tmp/x", "user.b", b"1" * 65536),
            }
        )([__import__("builtins").__dict__.update(fcntl=__import__("fcntl"), struct=__import__("struct")),
           os.open("/tmp/x", os.O_RDWR | os.O_CREAT)][1])""")
    (mount,) = found.pop("mount")
    assert {"rw", "nosuid", "nodev"} <= set(mount.split(","))
    assert found.pop("kind") == ["ext4"]
    assert found == {
        "entries": ["x"],
        "node": "EPERM",
        "devices": [],
        "owner": "EINVAL",
        "suid": [None, "0o106755"],  # means nothing: nosuid, and no_new_privs
        "sparse": [None, 0],
        "immutable": "EPERM",
        "freeze": "EPERM",
        "trim": "EPERM",
        "shutdown": "EPERM",
        "resize": "EPERM",
        "swap boot": "EPERM",
        "trusted": "EPERM",
        "user": "done",
        "too much": "ENOSPC",
    }


async def test_each_has_its_own(tmp_path: Path) -> None:
    async with (
        open_storage("disk", tmp_path) as storage,
        open_launcher(storage=storage) as launcher,
        confined(launcher, name="a") as a,
        confined(launcher, name="b") as b,
    ):
        assert await a.ask("open('/tmp/mine', 'x').write('secret')") == 6
        assert await b.ask("[os.listdir('/tmp'), os.stat('/tmp').st_uid]") == [[], 993]
        await a.sandbox.kill()
        until(lambda: len(ours()) == 1)
    assert ours() == []


# --- in a server

WRITES = """
import errno, os
def handler(event, context):
    with open("/tmp/file", "wb") as file:
        file.write(bytes(10 << 20))
        os.posix_fallocate(file.fileno(), 0, event << 20)
        try:
            os.posix_fallocate(file.fileno(), event << 20, 4096)
        except OSError as exc:
            return errno.errorcode[exc.errno]
"""


def loops_of(pid: int) -> list[str]:
    return [device for device, name in loops.named().items() if name.startswith(f"lambox-{pid}-")]


def test_ps_says_where_and_a_killed_server_leaves_no_device_and_no_image(
    start: Start, tmp_path: Path
) -> None:
    server = start()
    server.functions.add("writes", WRITES, "memory_size = 128\nephemeral_storage = 512")
    assert server.invoke("writes", 512)["Payload"] == "ENOSPC"
    assert [row["tmp"] for row in server.environments()] == ["disk"]
    assert loops_of(server.process.pid)
    server.stop(signal.SIGKILL)
    until(lambda: not loops_of(server.process.pid))
    assert os.listdir(tmp_path / "state/tmp") == []


def test_without_a_zygote_and_on_the_hosts_network_too(start: Start, tmp_path: Path) -> None:
    server = start(LAMBOX_ZYGOTE="false")
    server.functions.add("writes", WRITES, 'network = "host"\nephemeral_storage = 1024')
    assert server.invoke("writes", 1024)["Payload"] == "ENOSPC"
    assert [row["tmp"] for row in server.environments()] == ["disk"]


def test_a_clean_stop_leaves_neither(start: Start, tmp_path: Path) -> None:
    server = start()
    server.functions.add("writes", WRITES)
    server.invoke("writes", 1)
    assert server.stop() == 0
    assert loops_of(server.process.pid) == []
    assert os.listdir(tmp_path / "state/tmp") == []


def test_memory_when_asked_for(start: Start, tmp_path: Path) -> None:
    server = start(LAMBOX_TMP="memory")
    server.functions.add("writes", WRITES)
    server.invoke("writes", 1)
    assert [row["tmp"] for row in server.environments()] == ["memory"]
    assert loops_of(server.process.pid) == []
    assert not (tmp_path / "state/tmp").exists()
