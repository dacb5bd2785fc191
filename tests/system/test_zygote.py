"""Forked runtimes: they share nothing they must not, and nothing depends on their zygote's health."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import subprocess
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from rootfs.layout import Bind, Text
from sandbox.confine import identity, privilege
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.process import BwrapSandbox
from sandbox.confine.spec import ConfineError, Exit, Preparation, Program, SandboxSpec
from sandbox.confine.strays import Strays, namespaces
from sandbox.confine.zygote import Child
from tests.system.confine_fixtures import (
    CLIENT,
    PYTHON_FORKS,
    ROOT,
    made_ahead,
    nothing_left,
    proc,
    uids_apart,
)
from tests.system.conftest import LAMBOX, Functions, Server, Start

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not privilege.may_mount(), reason="host: sandboxes made ahead need a namespace of our own"
    ),
]
SPEC = SandboxSpec("forked", (*ROOT, *CLIENT), preparation=PYTHON_FORKS)
ASK = """
import json, logging, os, random, secrets, ssl, sys, tempfile, threading, uuid
relative = logging.makeLogRecord({}).relativeCreated
def handler(event, context):
    return {
        "random": random.random(), "secrets": secrets.token_hex(16), "uuid4": str(uuid.uuid4()),
        "uuid1": str(uuid.uuid1()), "ssl": ssl.RAND_bytes(16).hex(), "urandom": os.urandom(16).hex(),
        "mktemp": tempfile.mktemp(), "pid": os.getpid(), "modules": sorted(sys.modules),
        "fds": sorted(os.listdir("/proc/self/fd")), "argv": sys.argv, "path": sys.path[:4],
        "orig_argv": sys.orig_argv, "thread": threading.main_thread().native_id,
        "finders": [path for path in sys.path_importer_cache if "lambox" in path],
        "logging_ms": relative, "environ": dict(os.environ), "status": open("/proc/self/status").read(),
    }
"""


@asynccontextmanager
async def pooled(
    spec: SandboxSpec = SPEC, least: int = 1
) -> AsyncIterator[tuple[BwrapLauncher, SandboxSpec]]:
    with trio.fail_after(30):
        async with open_launcher(pool=PoolLimits(least, least)) as launcher:
            await made_ahead(launcher, spec)
            yield launcher, spec


def zygote_pids() -> list[int]:
    """The interpreters: children of bwraps of ours that hold the zygote's file."""

    def is_one(child: psutil.Process) -> bool:
        try:
            ours = namespaces(child.pid) == namespaces("self")  # a fork has its zygote's words
            return ours and "--zygote" in child.cmdline() and child.name() != "bwrap"
        except psutil.Error:  # gone meanwhile
            return False

    return [child.pid for child in psutil.Process().children(recursive=True) if is_one(child)]


def meddled_with(code: str) -> SandboxSpec:
    """A spec whose zygote has run `code` before its first fork."""
    text = "import os, signal\n" + textwrap.dedent(code)
    python = replace(
        PYTHON_FORKS,
        env=(*PYTHON_FORKS.env, ("PYTHONPATH", "/meddling")),
        preload=("meddling",),
    )
    root = (*ROOT, *CLIENT, Text(text, "/meddling/meddling.py"))
    return SandboxSpec("meddled-with", root, preparation=python)


async def run(sandbox: BwrapSandbox, code: str) -> None:
    await sandbox.start(Program(("/var/lang/bin/python3", "-I", "-c", code), {}, "/"))


async def ended(sandbox: BwrapSandbox) -> Exit:
    with trio.fail_after(10):
        exit_ = await sandbox.wait()
        await sandbox.kill()
    return exit_


async def test_the_runtime_is_the_zygotes_child_and_nobodys_else() -> None:
    async with pooled() as (launcher, spec):
        sandbox = await launcher.launch(spec)
        child = sandbox._child
        assert child is not None
        zygote = psutil.Process(child.pid).ppid()
        assert zygote in zygote_pids()
        burn = "while time.process_time() < 0.1: pass"
        await run(sandbox, f"import os, time\n{burn}\nos._exit(7)")
        assert (await ended(sandbox)).code == 7
        assert child.cpu_s is not None
        assert child.cpu_s >= 0.09
        assert psutil.pid_exists(zygote)


@pytest.mark.skipif(identity.choose() is None, reason="host: needs uids for sandboxes to have")
async def test_what_is_made_ahead_leaves_uids_and_gives_them_up() -> None:
    host = SandboxSpec("host", ROOT, network="host")
    limits = PoolLimits(8, 8)
    with trio.fail_after(30):
        async with open_launcher(uid_base=uids_apart(4), uid_count=4, pool=limits) as few:
            await made_ahead(few, SPEC)
            while few.prepared()[0].ready < 2:  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert few.places() == 4
            assert few._identities.free == 2
            sandboxes = [await few.launch(replace(host, name=f"host-{n}")) for n in range(4)]
            assert few.prepared()[0].ready == 0
            # One goes, and who waits for its uid has a zygote's fork all the same.
            async with trio.open_nursery() as nursery:

                async def launch() -> None:
                    sandboxes.append(await few.launch(replace(SPEC, name="last")))

                nursery.start_soon(launch)
                while few._identities.free == 0:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                await sandboxes[0].kill()
            assert sandboxes[-1]._child is not None
            for sandbox in sandboxes:
                await sandbox.kill()


@pytest.mark.skipif(identity.choose() is None, reason="host: needs uids for sandboxes to have")
async def test_the_only_uid_is_not_made_ahead() -> None:
    with trio.fail_after(30):
        async with open_launcher(
            uid_base=uids_apart(1), uid_count=1, pool=PoolLimits(8, 8)
        ) as launcher:
            launcher.keep([SPEC])
            for name in ("first", "second"):
                sandbox = await launcher.launch(replace(SPEC, name=name))
                await sandbox.kill()


async def test_a_killed_zygote_takes_nothing_along_and_another_takes_over() -> None:
    with nothing_left():
        async with pooled() as (launcher, spec):
            runs = await launcher.launch(spec)
            await run(runs, "import time; print('up', flush=True); time.sleep(60)")
            await trio.lowlevel.wait_readable(runs.stdout)
            exits = await launcher.launch(spec)
            await run(exits, "import time; print('up', flush=True); time.sleep(60)")
            await trio.lowlevel.wait_readable(exits.stdout)
            old = zygote_pids()
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            while set(zygote_pids()) & set(old):  # noqa: ASYNC110
                await trio.sleep(0.001)
            # Its children are ours now: the exit status is still the true one.
            assert exits._child is not None
            os.kill(exits._child.pid, signal.SIGSEGV)
            assert (await ended(exits)).signal == signal.SIGSEGV
            assert runs._child is not None
            assert proc(runs._child.pid, "comm")
            await made_ahead(launcher, spec)
            third = await launcher.launch(spec)
            await run(third, "raise SystemExit(3)")
            assert (await ended(third)).code == 3
            assert (await runs.kill()).killed


async def test_an_orphaned_fork_is_no_stray() -> None:
    """A sandbox that fails before its pid 1 is known takes along what nobody waits for, and only that."""
    with nothing_left():
        async with pooled() as (launcher, spec):
            runs = await launcher.launch(spec)
            await run(runs, "import time; print('up', flush=True); time.sleep(60)")
            await trio.lowlevel.wait_readable(runs.stdout)
            assert runs._child is not None
            orphan = psutil.Process(runs._child.pid)
            for pid in zygote_pids():
                os.kill(pid, signal.SIGKILL)
            while orphan.ppid() != os.getpid():  # noqa: ASYNC110
                await trio.sleep(0.001)
            broken = SandboxSpec("broken", (*spec.root, Bind("/nowhere", "/mnt")))
            with pytest.raises(ConfineError, match="nowhere"):
                await launcher.launch(broken)
            os.kill(orphan.pid, signal.SIGUSR1)
            assert (await ended(runs)).signal == signal.SIGUSR1


async def test_a_zygote_that_dies_before_it_names_its_fork_leaves_none() -> None:
    with nothing_left():
        async with open_launcher(pool=PoolLimits(0, 0)) as launcher:
            with pytest.raises(ConfineError):
                await launcher._make(
                    meddled_with(
                        """
                        fork = os.fork
                        def fork_and_die():
                            if pid := fork():
                                os.kill(os.getpid(), signal.SIGKILL)
                            return pid
                        os.fork = fork_and_die
                        """
                    )
                )


async def test_nobody_waits_for_what_a_dying_zygote_has_reaped() -> None:
    process = subprocess.Popen(["true"])  # noqa: ASYNC220
    child = Child(Strays(), 1, on_end=lambda: None)
    child.forked(process.pid)
    process.wait()
    with trio.fail_after(5):
        await child.reap()
        assert await child.wait() is None
    child.release()


async def test_a_fork_that_was_never_asked_for_keeps_no_zygote() -> None:
    async with pooled() as (launcher, spec):
        assert launcher._zygotes is not None
        zygote = await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")
        before = set(zygote._children)
        with trio.CancelScope() as scope:
            scope.cancel()
            await zygote.fork(os.getpid(), (), (), on_end=lambda: None)
        assert set(zygote._children) == before


async def test_a_zygote_that_stops_while_it_forks_holds_up_no_end() -> None:
    stops = """
        fork = os.fork
        def fork_and_stop():
            if pid := fork():
                os.kill(os.getpid(), signal.SIGSTOP)
            return pid
        os.fork = fork_and_stop
    """
    with nothing_left(), trio.fail_after(10):
        async with open_launcher(pool=PoolLimits(0, 0)) as launcher, trio.open_nursery() as nursery:
            nursery.start_soon(launcher._make, meddled_with(stops))
            while not any(  # noqa: ASYNC110
                psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in zygote_pids()
            ):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_a_zygote_without_descriptors_says_so() -> None:
    """Some of a sandbox's cgroups could be among those that did not arrive."""
    with nothing_left(), trio.fail_after(4):
        async with open_launcher(pool=PoolLimits(0, 0)) as launcher:
            few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))"
            with pytest.raises(ConfineError, match="Too many open files"):
                await launcher._make(meddled_with(few))


async def test_a_stopped_zygote_holds_up_no_kill() -> None:
    with nothing_left():
        async with pooled() as (launcher, spec):
            sandbox = await launcher.launch(spec)
            await run(sandbox, "import time; time.sleep(60)")
            for pid in zygote_pids():
                os.kill(pid, signal.SIGSTOP)
            with trio.fail_after(5):
                assert (await sandbox.kill()).killed


async def test_a_zygote_that_cannot_start_leaves_bwrap_to_do_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Preparation(("/nowhere/python",), (), forks=True)
    spec = SandboxSpec("alone", (*ROOT, *CLIENT), preparation=broken)
    with trio.fail_after(10):
        async with open_launcher(pool=PoolLimits(1, 1)) as launcher:
            launcher.keep([spec])
            while not caplog.messages:  # noqa: ASYNC110
                await trio.sleep(0.001)
            sandbox = await launcher.launch(spec)
            assert sandbox._child is None
            await run(sandbox, "raise SystemExit(4)")
            assert (await ended(sandbox)).code == 4
    assert "no zygote for /nowhere/python" in caplog.messages[0]


async def test_a_zygote_slow_to_start_holds_up_no_other() -> None:
    slow = meddled_with("signal.pause()").preparation
    assert slow is not None
    async with pooled() as (launcher, spec), trio.open_nursery() as nursery:
        assert launcher._zygotes is not None
        root = meddled_with("signal.pause()").root
        nursery.start_soon(launcher._zygotes.get, root, slow, "provided")
        while not launcher._zygotes._starting.locked():
            await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            assert (await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")).alive
        nursery.cancel_scope.cancel()


async def test_nonsense_on_the_channel_changes_nothing() -> None:
    async with pooled() as (launcher, spec):
        assert launcher._zygotes is not None
        zygote = await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided")
        for nonsense in (b"", b"F", b"X" * 13, b"F" * 13, os.urandom(64)):
            if nonsense:
                await zygote._channel.send(nonsense)
        assert await launcher._zygotes.get(spec.root, PYTHON_FORKS, "provided") is zygote
        sandbox = await launcher.launch(spec)
        await run(sandbox, "raise SystemExit(5)")
        assert (await ended(sandbox)).code == 5
        assert zygote.alive


async def test_code_is_mounted_late_read_only_and_nosuid(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    code = closed / "code"
    code.mkdir(parents=True)
    (code / "file").write_text("here")
    closed.chmod(0o700)  # nobody but root may walk there
    async with pooled() as (launcher, spec):
        late = SandboxSpec(
            "late", spec.root, late=(Bind(str(code), "/var/task"),), preparation=PYTHON_FORKS
        )
        sandbox = await launcher.launch(late)
        assert sandbox._child is not None
        await run(
            sandbox,
            "import os\n"
            "assert open('/var/task/file').read() == 'here'\n"
            "mounts = [line.split() for line in open('/proc/self/mountinfo')]\n"
            "print(next(m[5] for m in mounts if m[4] == '/var/task'))\n"
            "try:\n    open('/var/task/new', 'w')\n"
            "except OSError as exc:\n    print(exc.errno)\n",
        )
        exit_ = await sandbox.wait()
        said = os.read(sandbox.stdout, 1000).decode().split("\n")
        await sandbox.kill()
    assert exit_.code == 0
    assert {"ro", "nosuid", "nodev"} <= set(said[0].split(","))
    assert int(said[1]) == errno.EROFS


def ask_twice(server: Server, forked: bool) -> list[dict[str, Any]]:
    """What the same code says in two environments of its own."""
    for name in ("asks", "asks-too"):
        server.functions.add(name, ASK, "memory_size = 512")
    if forked:
        server.wait_prepared()
    answers = [server.invoke(name)["Payload"] for name in ("asks", "asks-too")]
    assert all(
        ("zygote" in Path(f"/proc/{pid}/cmdline").read_text()) == forked for pid in own(server)
    )
    return answers


def own(server: Server) -> list[int]:
    """The runtimes' pids on the host."""
    return [
        child.pid
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if child.name().startswith("python") and child.uids().real != 0
    ]


def test_two_forks_share_nothing_random(start: Start) -> None:
    first, second = ask_twice(start(), forked=True)
    for source in ("random", "secrets", "uuid4", "uuid1", "ssl", "urandom", "mktemp"):
        assert first[source] != second[source], source


def test_a_fork_is_what_a_fresh_interpreter_is(start: Start) -> None:
    forked, _ = ask_twice(start(), forked=True)
    fresh, _ = ask_twice(start(LAMBOX_ZYGOTE="false"), forked=False)

    def status(answer: dict[str, Any]) -> dict[str, str]:
        lines = (line.partition(":") for line in answer["status"].splitlines())
        kept = (
            "Uid",
            "Gid",
            "Groups",
            "Umask",
            "NoNewPrivs",
            "Seccomp",
            "Seccomp_filters",
            "Threads",
        )
        return {
            key: value.strip()
            for key, _, value in lines
            if key in kept or key.startswith(("Cap", "Sig", "Shd"))
        }

    for answer in (forked, fresh):
        own = ("AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_METADATA_TOKEN", "_X_AMZN_TRACE_ID")
        for key in own:
            del answer["environ"][key]
    assert status(forked) == status(fresh)
    assert forked["environ"] == fresh["environ"]
    for same in ("fds", "argv", "path", "orig_argv", "thread", "finders"):
        assert forked[same] == fresh[same], same
    assert set(fresh["modules"]) <= set(forked["modules"])


@pytest.mark.parametrize(
    ("variable", "expression", "expected"),
    [
        ('PYTHONOPTIMIZE = "1"', "__debug__", False),
        ('PYTHONHASHSEED = "7"', "sys.flags.hash_randomization", 1),
        ('TZ = "Asia/Tokyo"', "time.strftime('%Z')", "JST"),
        (
            'LD_LIBRARY_PATH = "/var/task/own"',
            "os.environ['LD_LIBRARY_PATH'][:13]",
            "/var/task/own",
        ),
        ('MINE = "é"', "os.environ['MINE']", "é"),
    ],
)
def test_variables_count_as_in_a_fresh_interpreter(
    start: Start, functions: Functions, variable: str, expression: str, expected: object
) -> None:
    code = f"import os, sys, time\ndef handler(event, context):\n    return {expression}\n"
    functions.add("says", code, f"memory_size = 512\n[environment]\n{variable}\n")
    server = start()
    server.wait_prepared()
    assert server.invoke("says")["Payload"] == expected


def test_json_logs_are_asked_for_per_function(start: Start, functions: Functions) -> None:
    """awslambdaric reads this when it is imported, which the zygote did long ago."""
    code = """
        import gc, logging
        def handler(event, context):
            logging.getLogger().info("not this")
            logging.getLogger().error("told")
            if event:
                raise ValueError("broken")
            return gc.get_freeze_count()
    """
    variables = """
        memory_size = 512
        [environment]
        AWS_LAMBDA_LOG_FORMAT = "JSON"
        AWS_LAMBDA_LOG_LEVEL = "WARN"
    """
    functions.add("logs", code, variables)
    server = start()
    server.wait_prepared()
    answer = server.invoke("logs", LogType="Tail")
    text = base64.b64decode(answer["LogResult"]).decode()
    (line,) = [line for line in text.splitlines() if "told" in line]
    assert json.loads(line)["message"] == "told"
    assert "not this" not in text
    assert answer["Payload"] > 0  # it is a fork, and no fresh interpreter
    text = base64.b64decode(server.invoke("logs", 1, LogType="Tail")["LogResult"]).decode()
    (line,) = [line for line in text.splitlines() if "broken" in line]
    assert json.loads(line)["errorType"] == "ValueError"


def test_a_functions_own_module_comes_before_a_preloaded_one(
    start: Start, functions: Functions
) -> None:
    code = (
        "import platform, resource, boto3\n"
        "def handler(event, context):\n"
        "    return [platform.WHOSE, resource.WHOSE, boto3.WHOSE]\n"
    )
    folder = functions.add("owns", code, "memory_size = 512").parent
    (folder / "platform.py").write_text("WHOSE = 'mine'\n")
    (folder / "resource.py").write_text(
        "WHOSE = 'also mine'\n"
    )  # the zygote's own business uses it
    (folder / "boto3").mkdir()
    (folder / "boto3" / "__init__.py").write_text("WHOSE = 'mine too'\n")
    functions.add(
        "has-not",
        "import sys\nthere = 'boto3' in sys.modules\n"
        "def handler(event, context):\n    return there\n",
        "memory_size = 512",
    )
    server = start(LAMBOX_PRELOAD="boto3, nowhere_at_all")
    server.wait_prepared()
    assert server.invoke("owns")["Payload"] == ["mine", "also mine", "mine too"]
    assert server.invoke("has-not")["Payload"] is True
    server.wait_log("preload: cannot import nowhere_at_all")


def test_what_a_preloaded_module_prints_is_no_functions_output(
    start: Start, functions: Functions
) -> None:
    functions.add("says", "def handler(event, context):\n    print('mine')\n", "memory_size = 512")
    server = start(LAMBOX_PRELOAD="this")
    server.wait_prepared()
    text = base64.b64decode(server.invoke("says", LogType="Tail")["LogResult"]).decode()
    assert "mine" in text
    assert "Zen of Python" not in text
    server.wait_log("Zen of Python")


def test_ps_shows_what_stands_ready(start: Start, functions: Functions) -> None:
    functions.add("hello", "def handler(event, context):\n    return 1\n")
    server = start(LAMBOX_POOL_MIN="2")
    server.wait_prepared(2)
    (row,) = server.get("/_lambox/prepared")
    assert (row["program"][:6], row["ready"], row["wanted"]) == ("python", 2, 2)
    assert row["memory_mb"] > 0
    shown = subprocess.run(
        [LAMBOX, "ps", "--endpoint", server.url], capture_output=True, text=True, check=True
    ).stdout
    assert "ready: 2 of 2 (python" in shown


def test_without_the_pool_everything_works_too(start: Start, functions: Functions) -> None:
    functions.add("hello", "def handler(event, context):\n    return event\n", "memory_size = 512")
    server = start(LAMBOX_ZYGOTE="false")
    assert server.get("/_lambox/prepared") == []
    assert server.invoke("hello", 5)["Payload"] == 5


NODE = """
export const handler = async () => ({
  argv: process.argv, cwd: process.cwd(), options: process.env.NODE_OPTIONS ?? null,
  keys: Object.keys(process.env).sort(), fds: (await import("node:fs")).readdirSync("/proc/self/fd").length,
});
"""


def test_node_waits_for_its_function_and_is_then_what_a_fresh_one_is(
    start: Start, functions: Functions
) -> None:
    functions.add("says", NODE, "memory_size = 512", file="index.mjs")
    options = 'memory_size = 512\n[environment]\nNODE_OPTIONS = "--no-warnings"\n'
    functions.add("asks-for-a-fresh-one", NODE, options, file="index.mjs")
    server = start()
    if server.get("/_lambox/functions")[0]["state"] == "broken":
        pytest.skip("host: no Node.js")
    server.wait_prepared()
    rows = server.get("/_lambox/prepared")
    assert {row["program"] for row in rows} == {"node", ""}  # the second must not be a parked one
    parked = server.invoke("says")["Payload"]
    assert server.invoke("asks-for-a-fresh-one")["Payload"]["options"] == "--no-warnings"
    server.stop()
    fresh = start(LAMBOX_ZYGOTE="false").invoke("says")["Payload"]
    assert parked == fresh
