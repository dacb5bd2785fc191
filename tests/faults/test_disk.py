"""Faults of disks and file systems: those that do not answer, and those that are full."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.faults.fuse_standin import mounted
from tests.faults.parts import ECHO, SLOW, Call, busy, refused, works
from tests.system.conftest import Functions, Server, Start
from tests.waiting import until

pytestmark = pytest.mark.system
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="host: mounting needs root")
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="host: no /dev/fuse")


@root_only
@needs_fuse
@pytest.mark.parametrize("zygote", ["true", "false"])
def test_a_folder_on_a_dead_file_system_stops_no_other_function(
    start: Start, functions: Functions, zygote: str
) -> None:
    """Warm environments go on; a cold start fails within seconds, the next at once; others notice nothing."""
    functions.add("other", ECHO)
    files = {"handler.py": SLOW.encode(), "function.toml": b"timeout = 30\n"}
    with mounted(functions.folder / "dead", files) as disk:
        server = start(LAMBOX_ZYGOTE=zygote, LAMBOX_GRACE_S="0")
        assert server.invoke("dead", 0)["Payload"] == "done"
        disk.stand_still()
        assert server.invoke("dead", 0)["Payload"] == "done"
        keeps_busy = Call(server, "dead", 25)
        until(lambda: busy(server, "dead"))

        cold = Call(server, "dead", 0)
        slowest, number = 0.0, 0
        while cold.is_alive() or number < 10:
            # Every other one is a cold start: the code has changed.
            number += 1
            functions.add("other", ECHO + f"# {number // 2}\n")
            began = time.monotonic()
            assert server.invoke("other", number)["Payload"] == number
            slowest = max(slowest, time.monotonic() - began)
        assert "ServiceException" in str(cold.result())
        # Held up, any of these would last for as long as the file system is silent.
        assert cold.took_s < 10
        assert slowest < 5
        assert refused(server, "dead", 0)[1] < 1.9
        server.wait_log("its file system does not answer")
        assert len(server.environments("dead")) == 1

        disk.go_on()
        until(lambda: works(server, "dead", 0))
        assert server.stop() == 0
        keeps_busy.result(10)


@root_only
@needs_fuse
def test_a_folder_that_is_dead_from_the_start_holds_up_no_start(
    start: Start, functions: Functions
) -> None:
    """Served after a second more; the function is refused with what to do until its file system answers."""
    functions.add("other", ECHO)
    with mounted(functions.folder / "dead", {"handler.py": ECHO.encode()}) as disk:
        disk.stand_still()
        server = start()
        assert server.invoke("other", 1)["Payload"] == 1
        error, took_s = refused(server, "dead", 1)
        assert error.startswith("ResourceConflictException")
        assert "does not answer" in error
        assert took_s < 2
        disk.go_on()
        until(lambda: works(server, "dead", 1))
        assert server.stop() == 0


class SmallState:
    """A state folder of 512 KB in the server's own mount namespace."""

    def __init__(self, start: Start, tmp_path: Path) -> None:
        state = tmp_path / "state"
        state.mkdir()
        script = f'mount -t tmpfs -o size=512k,mode=700 small "{state}" && exec "$@"'
        self.server: Server = start(prefix=["unshare", "--mount", "sh", "-c", script, "sh"])
        self._filler = Path(f"/proc/{self.server.process.pid}/root{state}/filler")

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        self._filler.unlink()


@root_only
@pytest.mark.parametrize("since", ["the start", "later"])
def test_a_full_state_folder_refuses_events_instead_of_losing_them(
    start: Start, tmp_path: Path, since: str
) -> None:
    """Event invocations get a ServiceException, others work; 202 is said again as soon as there is room."""
    small = SmallState(start, tmp_path)
    server = small.server
    server.functions.add("f", "def handler(event, context):\n    print('ran', event)\n")
    if since == "later":
        assert server.invoke("f", 0, InvocationType="Event")["StatusCode"] == 202
        server.wait_log("ran 0\n")
    small.fill()
    for number in range(1, 6):
        event = "x" * 50_000 + str(number)  # more than what is left of the last page
        error, took_s = refused(server, "f", event, InvocationType="Event")
        assert error.startswith("ServiceException")
        assert took_s < 2
    server.wait_log("an event is refused")
    assert "FunctionError" not in server.invoke("f", 6)
    small.empty()
    assert server.invoke("f", 7, InvocationType="Event")["StatusCode"] == 202
    server.wait_log("ran 6\n", "ran 7\n")
    assert not any(f"x{number}\n" in server.log.read_text() for number in range(1, 6))
    assert server.stop() == 0


@root_only
def test_a_full_state_folder_breaks_layered_functions_only_for_as_long(
    start: Start, tmp_path: Path
) -> None:
    """Layers that cannot be merged are a 409 that names the folder; with room it works, nothing half stays."""
    small = SmallState(start, tmp_path)
    server = small.server
    for number in (1, 2):
        (tmp_path / f"layer{number}").mkdir()
        (tmp_path / f"layer{number}" / f"data{number}").write_bytes(b"x" * 150_000)
    small.fill()
    server.functions.add(
        "layered",
        "import os\ndef handler(event, context):\n    return sorted(os.listdir('/opt'))\n",
        f'layers = ["{tmp_path}/layer1", "{tmp_path}/layer2"]',
    )
    error, _ = refused(server, "layered")
    assert error.startswith("ResourceConflictException")
    assert "cannot merge layers" in error
    assert "No space left" in error
    small.empty()
    until(lambda: works(server, "layered"))
    assert server.invoke("layered")["Payload"] == ["data1", "data2"]
    assert server.stop() == 0


def test_a_full_tmp_is_the_functions_own_matter(start: Start) -> None:
    """The handler gets ENOSPC at the configured size and may go on; the next environment starts empty."""
    server = start()
    server.functions.add(
        "fills",
        """
        import errno, os
        def handler(event, context):
            try:
                with open("/tmp/full", "wb", buffering=0) as file:
                    while file.write(bytes(1 << 20)) == 1 << 20:
                        pass
                    size = file.tell()
                    file.write(b"x" * (1 << 20))
                return "no end"
            except OSError as exc:
                return errno.errorcode[exc.errno], os.path.getsize("/tmp/full") >> 20
        """,
        "ephemeral_storage = 512\nmemory_size = 1024\ntimeout = 60",
    )
    name, size_mb = server.invoke("fills")["Payload"]
    assert name == "ENOSPC"
    assert 400 <= size_mb <= 512  # a file system's own share comes off
    assert server.invoke("fills")["Payload"] == [name, size_mb]
