"""An ordinary user's lambox: a user namespace of its own, with a range of uids, with one, and where there is none.

`tools/as-user` makes the user, with all that newuidmap asks for, in a mount namespace of the command's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox.confine import privilege
from tests.system.conftest import Functions, Server
from tests.waiting import until

TOP = Path(__file__).parents[2]
AS_USER = TOP / "tools/as-user"
UID, FIRST_SUBORDINATE = 61_184, 1_800_000_000
"""Of tools/as-user."""
ONLY_ROOT = pytest.mark.skipif(
    not privilege.of_the_host() or os.geteuid() != 0, reason="host: only root makes a user"
)
pytestmark = [pytest.mark.system, ONLY_ROOT]
HELLO = "import os\ndef handler(event, context):\n    return [os.getuid(), os.getppid()]\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user can walk to."""
    with tempfile.TemporaryDirectory(prefix="rootless-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_user(*options: str, then: tuple[str, ...]) -> list[str]:
    return [str(AS_USER), *options, "--", sys.executable, *then]


def run(*options: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        as_user(*options, then=("-c", code)), capture_output=True, text=True, timeout=60, cwd=TOP
    )


@contextlib.contextmanager
def serving(folder: Path, *options: str, **env: str) -> Iterator[Server]:
    """A server of the user's on `folder/functions`; `process` is the wrapper."""
    functions = Functions(folder / "functions")
    functions.add("hello", HELLO)
    words = ("-m", "lambox", "serve", "--functions", str(functions.folder), "--port", "0")
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            as_user(*options, then=words),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=TOP,
            env={**os.environ, **env},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, (folder / "log").read_text()
        url = "http://" + line.split("http://")[1].split()[0]
        yield Server(url, process, functions, folder / "log")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def server_process(wrapper: subprocess.Popen[str]) -> psutil.Process:
    (server,) = those(psutil.Process(wrapper.pid).children(), lambda one: "serve" in one.cmdline())
    return server


def those(
    processes: list[psutil.Process], wanted: Callable[[psutil.Process], bool]
) -> list[psutil.Process]:
    """Who of them lives and is wanted: any may end while it is asked."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if wanted(process):
                found.append(process)
    return found


def uids_inside(server: psutil.Process) -> set[int]:
    """The host uids of what is in sandboxes."""
    found = set()
    for child in server.children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if child.pid != 1 and Path(f"/proc/{child.pid}/root").exists():
                name = Path(f"/proc/{child.pid}/status").read_text()
                levels = next(line for line in name.splitlines() if line.startswith("NSpid:"))
                if len(levels.split()) > 2:
                    found.add(child.uids().real)
    return found


@pytest.mark.parametrize("options", [(), ("--one",), ("--no-cgroup",)], ids=" ".join)
def test_a_users_server_forks_from_a_zygote(place: Path, options: tuple[str, ...]) -> None:
    weaker = {"LAMBOX_ALLOW_WEAKER": "cgroups"} if "--no-cgroup" in options else {}
    with serving(place, *options, **weaker) as server:
        process = server_process(server.process)
        assert process.uids().real == UID
        # Itself the root of its namespace: nothing was executed in its stead.
        assert "lambox" in " ".join(process.cmdline())
        first = Path(f"/proc/{process.pid}/uid_map").read_text().split()[:3]
        assert first == ["0", str(UID), "1"]
        server.wait_prepared()
        assert server.invoke("hello")["Payload"] == [993, 0], "not a zygote's fork"
        (row,) = server.environments("hello")
        uids = uids_inside(process)
        if "--one" in options:
            assert uids == {UID}
        else:
            # Those made ahead and the one that runs: each has one of the user's range. (One that is
            # being made in the place of the one taken has still to put its own on.)
            assert len(uids) > 1
            until(lambda: all(uid >= FIRST_SUBORDINATE for uid in uids_inside(process)))
        process.terminate()
        assert server.process.wait(30) == 0
        assert row["state"]
    assert not psutil.pid_exists(process.pid)


def test_a_users_server_that_is_killed_takes_all_along(place: Path) -> None:
    with serving(place) as server:
        server.wait_prepared()
        process = server_process(server.process)
        family = process.children(recursive=True)
        process.kill()
        assert server.process.wait(30) == 128 + signal.SIGKILL
        until(lambda: not any(child.is_running() for child in family))


@pytest.mark.parametrize("options", [(), ("--one",)], ids=" ".join)
def test_entering_changes_nothing_else(options: tuple[str, ...]) -> None:
    done = run(
        *options,
        code="""if 1:
            import json, os, signal, threading
            from pathlib import Path
            from sandbox.confine import identity, privilege, userns
            environ = dict(os.environ)
            before = os.getpid(), os.getppid(), os.getcwd(), os.listdir("/proc/self/fd")
            assert not privilege.may_mount()
            said = userns.enter()
            assert before == (os.getpid(), os.getppid(), os.getcwd(), os.listdir("/proc/self/fd"))
            assert os.environ == environ
            assert privilege.may_mount()
            assert not privilege.of_the_host()
            assert not privilege.owns_files()
            path = Path(os.environ["HOME"], "file")
            path.write_text("mine")
            assert path.stat().st_uid == 0
            uids = identity.choose()
            print(json.dumps([said.refused, said.lacking, privilege.host_uid(), privilege.drops_groups(),
                uids and privilege.host_uid(uids[0])]), flush=True)
            assert userns.enter() == userns.Entered()
            os.kill(os.getpid(), signal.SIGUSR1)
        """,
    )
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    refused, lacking, uid, drops, first = json.loads(done.stdout)
    assert (refused, uid) == ("", UID)
    if options:
        assert "has no 1000 ids for tester" in lacking
        assert (drops, first) == (False, None)
    else:
        assert (lacking, drops, first) == ("", True, FIRST_SUBORDINATE + 32768 - 1)


def test_a_second_thread_keeps_us_who_we_are() -> None:
    done = run(
        code="""if 1:
            import os, threading
            from sandbox.confine import userns
            over = threading.Event()
            threading.Thread(target=over.wait).start()
            said = userns.enter()
            over.set()
            print(os.getuid(), said.refused)
        """
    )
    assert done.stdout == f"{UID} this process has more than one thread\n", done.stderr


def test_a_newuidmap_without_its_bit_leaves_one_uid(place: Path) -> None:
    for name in ("newuidmap", "newgidmap"):
        tool = place / name
        tool.write_text(
            "#!/bin/sh\necho write to uid_map failed: Operation not permitted >&2; exit 1\n"
        )
        tool.chmod(0o755)
    done = subprocess.run(
        as_user(
            then=(
                "-c",
                "from sandbox.confine import identity, privilege, userns; said = userns.enter();"
                "print(privilege.may_mount(), identity.choose(), said.lacking, said.remedy, sep='; ')",
            )
        ),
        capture_output=True,
        text=True,
        cwd=TOP,
        timeout=60,
        env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"},
    )
    assert done.stdout.startswith("True; None; write to uid_map failed"), done.stderr
    assert "chmod u+s" in done.stdout


def test_without_user_namespaces_serve_names_the_switch(place: Path) -> None:
    (place / "functions").mkdir()
    words = ("-m", "lambox", "serve", "--functions", str(place / "functions"), "--port", "0")
    done: Any = subprocess.run(
        as_user("--no-userns", then=words), capture_output=True, text=True, timeout=60, cwd=TOP
    )
    assert done.returncode == 3
    assert "forbidden by user.max_user_namespaces = 0" in done.stderr
    assert "sysctl -w user.max_user_namespaces=15000" in done.stderr


def test_where_nothing_tells_environments_apart_none_has_the_hosts_network(place: Path) -> None:
    with serving(place, "--one", "--no-cgroup", LAMBOX_ALLOW_WEAKER="cgroups") as server:
        server.functions.add("online", HELLO, 'network = "host"')
        with pytest.raises(Exception, match=r"neither uids nor v2 cgroups") as refused:
            server.invoke("online")
        assert "ResourceConflictException" in str(refused.value)
        assert "Hint: usermod --add-subuids" in str(refused.value)
        assert server.invoke("hello")["Payload"][0] == 993
