"""Faults of disks and file systems: those that do not answer, and those that are full."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.faults.fuse_standin import mounted
from tests.system.conftest import Functions, Server, Start, until

pytestmark = pytest.mark.system
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="host: mounting needs root")
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="host: no /dev/fuse")
ECHO = "def handler(event, context):\n    return event\n"
SLEEPER = b"import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'done'\n"


def refused(server: Server, name: str, event: Any = None) -> tuple[str, float]:
    """The code and message of what an invocation is refused with, and how long that took."""
    began = time.monotonic()
    with pytest.raises(ClientError) as caught:
        server.invoke(name, event)
    error = caught.value.response["Error"]
    return f"{error['Code']}: {error['Message']}", time.monotonic() - began


def works(server: Server, name: str) -> bool:
    try:
        return bool(server.invoke(name, 0)["Payload"] == "done")
    except ClientError:
        return False


@root_only
@needs_fuse
@pytest.mark.parametrize("zygote", ["true", "false"])
def test_a_folder_on_a_dead_file_system_stops_no_other_function(
    start: Start, functions: Functions, zygote: str
) -> None:
    """Warm environments go on; a cold start fails within seconds, the next at once; others notice nothing."""
    functions.add("other", ECHO)
    files = {"handler.py": SLEEPER, "function.toml": b"timeout = 30\n"}
    with mounted(functions.folder / "dead", files) as disk:
        server = start(LAMBOX_ZYGOTE=zygote)
        assert server.invoke("dead", 0)["Payload"] == "done"
        disk.stand_still()
        assert server.invoke("dead", 0)["Payload"] == "done"
        keeps_busy = threading.Thread(target=server.invoke, args=("dead", 4))
        keeps_busy.start()
        until(lambda: server.environments("dead")[0]["state"] == "busy")

        refusals: list[tuple[str, float]] = []
        cold = threading.Thread(target=lambda: refusals.append(refused(server, "dead", 0)))
        cold.start()
        slowest, number = 0.0, 0
        while cold.is_alive() or number < 10:
            # Every other one is a cold start: the code has changed.
            number += 1
            functions.add("other", ECHO + f"# {number // 2}\n")
            began = time.monotonic()
            assert server.invoke("other", number)["Payload"] == number
            slowest = max(slowest, time.monotonic() - began)
        cold.join()
        ((error, took_s),) = refusals
        assert error.startswith("ServiceException")
        assert took_s < 6
        assert slowest < 2
        assert refused(server, "dead", 0)[1] < 1
        server.wait_log("its file system does not answer")
        assert len(server.environments("dead")) == 1

        disk.go_on()
        until(lambda: works(server, "dead"))
        keeps_busy.join()
        assert server.stop() == 0
