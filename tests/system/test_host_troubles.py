"""What hosts do to sandboxes: each trouble made for real, recognised, and named with its mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.confine import hosts, privilege

TOP = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not privilege.may_mount(), reason="host: troubles are made in namespaces"),
]
CHECK = """
import json
from lambox import config, doctor
settings = config.load({}, environ={})
print(json.dumps([[r.name, r.verdict, r.found, r.remedy] for check in (%s,) for r in check(settings)]))
"""


def run(before: tuple[str, ...], code: str, fds: tuple[int, ...] = ()) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=TOP,
        pass_fds=fds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def checked(
    check: str, *, before: tuple[str, ...] = (), first: str = "", fds: tuple[int, ...] = ()
) -> tuple[str, str, str]:
    """(verdict, found, remedy) of one of doctor's checks, where `before` and `first` have been at work."""
    said = run(before, textwrap.dedent(first) + CHECK % f"doctor.{check}", fds)
    ((_, verdict, found, remedy),) = json.loads(said.splitlines()[-1])
    return verdict, found, remedy


@pytest.mark.parametrize("kind", ["net", "pid", "uts"])
def test_a_namespace_count_that_is_full_is_named(kind: str) -> None:
    verdict, found, remedy = checked(
        "_sandbox",
        before=("unshare", "--user", "--map-root-user"),
        first=f"open('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')",
    )
    assert verdict == "missing"
    assert f"user.max_{kind}_namespaces" in found
    assert remedy == f"sysctl -w user.max_{kind}_namespaces=15000"


@pytest.fixture
def refusing() -> Iterator[int]:
    """A filter as a container's: no new namespaces, no mounts."""
    pyseccomp = pytest.importorskip("pyseccomp")
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in ("unshare", "mount", "setns"):
        rules.add_rule(pyseccomp.ERRNO(1), name)
    rules.add_rule(
        pyseccomp.ERRNO(1),
        "clone",
        pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 0x10000000, 0x10000000),
    )
    rules.add_rule(pyseccomp.ERRNO(38), "clone3")
    fd = os.memfd_create("filter", 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        rules.export_bpf(file)
    os.lseek(fd, 0, os.SEEK_SET)
    yield fd
    os.close(fd)


def test_the_seccomp_filter_of_an_outer_container_is_named(refusing: int) -> None:
    outer = ("bwrap", "--dev-bind", "/", "/", "--seccomp", str(refusing))
    verdict, found, remedy = checked("_sandbox", before=outer, fds=(refusing,))
    assert verdict == "missing"
    assert "a seccomp filter holds us" in found
    assert "seccomp=unconfined" in remedy


def test_a_proc_that_is_covered_in_places_is_named() -> None:
    cover = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc/tty && exec "$@"', "-")
    verdict, found, remedy = checked("_sandbox", before=cover)
    assert verdict == "missing"
    assert "/proc/tty" in found
    assert "systempaths=unconfined" in remedy


AS_PID_1 = ("unshare", "--pid", "--fork", "--mount-proc")
DEAF_PID_1 = """
import os
read, write = os.pipe()
if os.fork():
    os.close(write)
    os.read(read, 1)  # until the other has ended; it is never waited for, and nobody else either
    os._exit(0)
os.close(read)
"""


def test_a_pid_1_that_does_not_reap_is_named() -> None:
    verdict, found, remedy = checked("_orphans", before=AS_PID_1, first=DEAF_PID_1)
    assert verdict == "note"
    assert "python" in found
    assert "(pid 1) does not reap" in found
    assert "--init" in remedy


def test_a_pid_1_that_reaps_is_not() -> None:
    init = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc")
    assert checked("_orphans", before=init)[0] == "ok"


def test_zombies_that_pile_up_are_counted_and_their_parent_named() -> None:
    pile = "import os\nfor _ in range(120):\n    if not os.fork(): os._exit(0)\n"
    verdict, found, remedy = checked("_orphans", first=pile)
    assert verdict == "note"
    assert "dead children unreaped" in found
    assert int(found.split(" has left ")[1].split()[0]) >= 120
    assert remedy.startswith("kill ")


def test_an_attempt_at_a_sandbox_leaves_no_process() -> None:
    """bwrap leaves the process between itself and its pid 1 to whoever reaps orphans."""
    subreaper = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
    said = run(
        (),
        subreaper
        + CHECK % "doctor._sandbox"
        + "from sandbox.confine import hosts\nimport os\nprint(hosts.zombies().get(os.getpid(), 0))",
    )
    assert said.splitlines()[-1] == "0"


def test_an_old_bwrap_is_refused_with_its_version(tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    path = f"import os; os.environ['PATH'] = '{tmp_path}:' + os.environ['PATH']\n"
    verdict, found, remedy = checked("_bwrap", first=path)
    assert (verdict, found) == ("missing", "bubblewrap 0.4.1 is too old, 0.8.0 is needed")
    assert remedy == "apt-get install bubblewrap"


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "said", "cause", "mend"),
    [
        (
            {"sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"},
            "bwrap: setting up uid map: Permission denied",
            "kernel.apparmor_restrict_unprivileged_userns = 1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            {"sys/kernel/unprivileged_userns_clone": "0\n"},
            "bwrap: No permissions to create new namespace",
            "kernel.unprivileged_userns_clone = 0",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            {"self/attr/current": "docker-default (enforce)\n"},
            "bwrap: Failed to make / slave: Permission denied",
            "docker-default (enforce)",
            "docker run --security-opt apparmor=unconfined ...",
        ),
        ({"self/attr/current": "unconfined\n"}, "it failed", "does not say why", "--privileged"),
        ({"self/attr/current": "kernel\0"}, "it failed", "does not say why", "--privileged"),
    ],
)
def test_what_shows_in_proc_only(
    tmp_path: Path, files: dict[str, str], said: str, cause: str, mend: str
) -> None:
    trouble = hosts.explain(said, proc=tree(tmp_path, files))
    assert cause in trouble.cause
    assert mend in trouble.mend
