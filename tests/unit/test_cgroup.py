"""Control groups on files in a temporary folder, and what /proc says in all kinds of places."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.confine import cgroup, cgroup_v1, cgroup_v2
from sandbox.confine.cgroup_v1 import Bases, V1Cgroup, V1Tree, mounted
from sandbox.confine.cgroup_v2 import V2Cgroup, V2Tree
from sandbox.confine.spec import MIB, ConfineError, IsolationUnavailable, Limits

LIMITS = Limits(memory_bytes=128 * MIB, pids=7)


# --- where we are: /proc/self/mountinfo and /proc/self/cgroup


def line(root: str, mount: str, kind: str, options: str) -> str:
    return f"35 24 0:30 {root} {mount} rw,nosuid shared:9 - {kind} {kind} rw,{options}\n"


def test_a_v1_host(tmp_path: Path) -> None:
    (tmp_path / "cpu,cpuacct/user").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    found = mounted(
        line("/", f"{tmp_path}/cpu,cpuacct", "cgroup", "cpu,cpuacct")
        + line("/", f"{tmp_path}/memory", "cgroup", "memory")
        + line("/", f"{tmp_path}/systemd", "cgroup", "xattr,name=systemd"),
        "4:cpu,cpuacct:/user\n3:memory:/\n1:name=systemd:/user\n",
    )
    assert found == {
        "cpu": tmp_path / "cpu,cpuacct/user",
        "cpuacct": tmp_path / "cpu,cpuacct/user",
        "memory": tmp_path / "memory",
    }


def test_a_hybrid_host_has_a_v2_tree_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "unified/deep/er").mkdir(parents=True)
    found = mounted(line("/", f"{tmp_path}/unified", "cgroup2", "nsdelegate"), "0::/deep/er\n")
    assert found == {"": tmp_path / "unified/deep/er"}


@pytest.mark.parametrize(
    ("root", "own", "inside"),
    [
        # docker, v1: its group is the root of what it sees mounted.
        ("/docker/abc", "/docker/abc", "."),
        ("/docker/abc", "/docker/abc/child", "child"),
        # with a cgroup namespace of its own
        ("/", "/", "."),
        ("/", "/init", "init"),
        # kubepods, the host's paths seen from inside another mount
        ("/kubepods/pod1/c1", "/kubepods/pod1", "."),
        ("/../..", "/", "."),
        # moved out of sight of the cgroup namespace
        ("/", "/../other", "."),
    ],
)
def test_containers(tmp_path: Path, root: str, own: str, inside: str) -> None:
    for folder in ("child", "init"):
        (tmp_path / folder).mkdir()
    found = mounted(line(root, str(tmp_path), "cgroup", "memory"), f"4:memory:{own}\n")
    assert found == {"memory": tmp_path / inside}


def test_blanks_in_mount_points_and_other_file_systems(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    info = line("/", "/proc", "proc", "x") + line("/", escaped, "cgroup", "pids")
    assert mounted(info, "1:pids:/\n") == {"pids": tmp_path / "a b"}


def test_a_controller_mounted_twice_is_taken_once_and_a_lost_folder_never(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    info = "".join(line("/", f"{tmp_path}/{name}", "cgroup", "pids") for name in ("one", "two"))
    assert mounted(info, "1:pids:/\n") == {"pids": tmp_path / "one"}
    assert mounted(info, "1:pids:/gone\n") == {}


# --- cgroup v2


def v2(folder: Path, *, offered: str = "cpu memory pids", on: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.controllers").write_text(offered)
    (folder / "cgroup.subtree_control").write_text(on)
    (folder / "cgroup.procs").write_text("")
    return folder


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = v2(tmp_path / "top")
    monkeypatch.setattr(cgroup_v2, "MOUNT", top)
    return top


@pytest.fixture
def scope(mount: Path) -> Path:
    """.../session-1.scope"""
    return v2(v2(v2(mount / "user.slice") / "user-0.slice") / "session-1.scope")


def test_root_takes_the_top(mount: Path, scope: Path) -> None:
    found = cgroup_v2.bases(scope, root=True)
    assert found[0] == (mount, False)
    # Moving anybody comes last.
    assert [move for _, move in found] == [False] * (len(found) - 1) + [True]


def test_a_user_takes_the_nearest_that_holds_no_processes(mount: Path, scope: Path) -> None:
    found = cgroup_v2.bases(scope, root=False)
    assert found[0] == (scope.parent, False)
    assert found[-2:] == [(scope, False), (scope, True)]


def test_what_systemd_delegated_comes_first(
    mount: Path, scope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup_v2, "_delegated", lambda folder: folder == scope)
    (scope / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert cgroup_v2.bases(scope, root=True)[0] == (scope, True)
    # The shell that started us is not ours to move.
    (scope / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    assert cgroup_v2.bases(scope, root=True)[:2] == [(scope, False), (mount, False)]


@pytest.mark.parametrize("own", ["..", "../../elsewhere", "gone"])
def test_a_group_out_of_sight(mount: Path, own: str) -> None:
    assert cgroup_v2.bases(mount / own, root=True) == [(mount, False), (mount, True)]


def test_controllers_are_switched_on_where_they_are_not(mount: Path) -> None:
    assert cgroup_v2._enable(mount, move=False) is False
    assert (mount / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    (mount / "cgroup.subtree_control").write_text("cpu io memory pids")
    cgroup_v2._enable(mount, move=False)
    assert (mount / "cgroup.subtree_control").read_text() == "cpu io memory pids"


def test_a_controller_that_is_not_offered(mount: Path) -> None:
    v2(mount, offered="cpu pids")
    with pytest.raises(ConfineError, match="no memory controller"):
        cgroup_v2._enable(mount, move=False)


class Busy:
    """The no-internal-process rule: while cgroup.procs lists somebody, subtree_control is EBUSY."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.moved: list[str] = []
        self._write = Path.write_text
        monkeypatch.setattr(Path, "write_text", lambda path, text: self(path, text))

    def __call__(self, path: Path, text: str) -> int:
        procs = self.base / "cgroup.procs"
        if path == self.base / "cgroup.subtree_control" and text.startswith("+"):
            if procs.read_text():
                raise OSError(16, "Device or resource busy")
        elif path.name == "cgroup.procs":
            self.moved.append(text)
            others = [pid for pid in procs.read_text().split() if pid != text]
            self._write(procs, "".join(f"{pid}\n" for pid in others))
            return len(text)
        return self._write(path, text)


def test_processes_are_moved_to_a_leaf_only_if_they_may_be(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mount / "cgroup.procs").write_text("11\n12\n")
    busy = Busy(mount, monkeypatch)
    with pytest.raises(ConfineError, match="holds processes"):
        cgroup_v2._enable(mount, move=False)
    assert busy.moved == []
    assert not (mount / "init").exists()
    assert cgroup_v2._enable(mount, move=True) is True
    assert busy.moved == ["11", "12"]
    assert (mount / "init").is_dir()


def test_processes_of_other_pid_namespaces_are_left_and_we_too(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show as 0, which when written means the writer."""
    (mount / "cgroup.procs").write_text("0\n11\n")
    busy = Busy(mount, monkeypatch)
    with pytest.raises(ConfineError, match="cannot be moved"):
        cgroup_v2._enable(mount, move=True)
    assert set(busy.moved) == {"11"}


def test_a_v2_group_has_all_its_limits(tmp_path: Path) -> None:
    group = V2Cgroup(tmp_path / "g", LIMITS)
    group.limit_cpu(0.5)
    group.freeze()
    assert {path.name: path.read_text() for path in (tmp_path / "g").iterdir()} == {
        "memory.max": str(128 * MIB),
        "pids.max": "7",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "cgroup.freeze": "1",
    }
    group.limit_cpu(0.0001)
    assert (tmp_path / "g/cpu.max").read_text() == "1000 100000"  # the least the kernel takes


def test_what_a_v2_group_has_used(tmp_path: Path) -> None:
    group = V2Cgroup(tmp_path / "g", LIMITS)
    assert (group.memory(), group.memory_peak(), group.cpu_s(), group.oom_kills()) == (
        None,
        None,
        None,
        0,
    )
    for name, text in {
        "memory.current": "5\n",
        "memory.peak": "9\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n",
        "cgroup.procs": "3\n4\n",
    }.items():
        (tmp_path / "g" / name).write_text(text)
    assert (group.memory(), group.memory_peak(), group.cpu_s(), group.oom_kills()) == (5, 9, 2.5, 2)
    assert group.pids() == [3, 4]


def test_a_v2_tree_whose_children_get_nothing_is_undone(mount: Path) -> None:
    before = sorted(mount.iterdir())
    original = cgroup.make_own

    def make(bases: list[Path]) -> str:
        name = original(bases)
        (bases[0] / name / "cgroup.subtree_control").mkdir()
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroup, "make_own", make)
        with pytest.raises(ConfineError, match="subtree_control"):
            V2Tree(mount)
    for path in set(mount.iterdir()) - set(before):
        # Only what this fake cannot remove, being no cgroupfs.
        assert [child.name for child in path.iterdir()] == ["cgroup.subtree_control"]


# --- cgroup v1


def v1(tmp_path: Path, *, unified: bool) -> Bases:
    for name in ("memory", "pids", "cpu", "unified", "freezer"):
        (tmp_path / name).mkdir()
    return Bases(
        memory=tmp_path / "memory/g",
        pids=tmp_path / "pids/g",
        cpu=tmp_path / "cpu/g",
        cpuacct=tmp_path / "cpu/g",
        unified=tmp_path / "unified/g" if unified else None,
        freezer=None if unified else tmp_path / "freezer/g",
    )


@pytest.mark.parametrize("unified", [True, False])
def test_a_v1_group_is_one_folder_in_each_hierarchy(tmp_path: Path, unified: bool) -> None:
    group = V1Cgroup(v1(tmp_path, unified=unified), LIMITS)
    last = "unified" if unified else "freezer"
    assert group.procs == [
        f"{tmp_path}/{n}/g/cgroup.procs" for n in ("memory", "pids", "cpu", last)
    ]
    assert (tmp_path / "memory/g/memory.limit_in_bytes").read_text() == str(128 * MIB)
    assert (tmp_path / "pids/g/pids.max").read_text() == "7"
    group.limit_cpu(2)
    assert (tmp_path / "cpu/g/cpu.cfs_quota_us").read_text() == "200000"
    group.freeze()
    frozen = "unified/g/cgroup.freeze" if unified else "freezer/g/freezer.state"
    assert (tmp_path / frozen).read_text() == ("1" if unified else "FROZEN")
    group.thaw()
    assert (tmp_path / frozen).read_text() == ("0" if unified else "THAWED")


def test_what_a_v1_group_has_used(tmp_path: Path) -> None:
    group = V1Cgroup(v1(tmp_path, unified=False), LIMITS)
    assert (group.memory(), group.memory_peak(), group.cpu_s(), group.oom_kills()) == (
        None,
        None,
        None,
        0,
    )
    for name, text in {
        "memory/g/memory.usage_in_bytes": "5\n",
        "memory/g/memory.max_usage_in_bytes": "9\n",
        "cpu/g/cpuacct.usage": "2500000000\n",
        "memory/g/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert (group.memory(), group.memory_peak(), group.cpu_s(), group.oom_kills()) == (5, 9, 2.5, 2)


def test_a_v1_name_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    bases = v1(tmp_path, unified=True)
    bases.cpu.mkdir()
    with pytest.raises(ConfineError, match="File exists"):
        V1Cgroup(bases, LIMITS)
    assert bases.cpu.is_dir()
    assert not bases.memory.exists()


# --- folders of supervisors


def test_names_of_the_dead_and_the_living(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "HOSTS_PIDS", 0)  # as in a container
    own = cgroup.own_name()
    _, pid, start, namespace = own.split("-")
    assert not cgroup.is_orphaned(own)
    assert not cgroup.is_orphaned(f"{own}-1")
    assert cgroup.is_orphaned(
        f"lambox-{pid}-{int(start) + 1}-{namespace}"
    )  # the pid is another's now
    assert cgroup.is_orphaned(f"lambox-{pid}-{int(start) + 1}-{namespace}-2")
    assert cgroup.is_orphaned(f"lambox-{1 << 22}-1-{namespace}")
    # Of another pid namespace nothing can be told from there.
    assert not cgroup.is_orphaned(f"lambox-{pid}-{int(start) + 1}-1")
    for name in ("lambox", "lambox-x", f"lambox-{pid}-{start}", f"x{own}", f"{own}/.."):
        assert not cgroup.is_orphaned(name)


def test_two_trees_of_one_process_have_different_folders(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    names = [cgroup.make_own([one, two]) for _ in range(3)]
    assert len(set(names)) == 3
    assert sorted(path.name for path in two.iterdir()) == sorted(names)


def test_a_folder_that_cannot_be_made_everywhere_is_made_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroup.make_own([tmp_path, tmp_path / "missing"])
    assert list(tmp_path.iterdir()) == []


def test_only_what_dead_supervisors_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = cgroup.own_name().rpartition("-")[2]
    dead = tmp_path / "a/b" / f"lambox-{1 << 22}-1-{namespace}"
    (dead / "sandbox").mkdir(parents=True)
    living = tmp_path / cgroup.own_name()
    foreign = tmp_path / f"lambox-12-34-{os.stat('/proc/self/ns/net').st_ino}"
    monkeypatch.setattr(cgroup, "HOSTS_PIDS", 0)  # as in a container
    for folder in (living, foreign):
        (folder / "sandbox").mkdir(parents=True)
    for group in (dead, dead / "sandbox"):
        (group / "cgroup.procs").symlink_to("/dev/null")
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)  # in cgroupfs, files are no obstacle
    assert cgroup.sweep_folders([tmp_path]) == [str(dead)]
    assert not dead.exists()
    assert (living / "sandbox").exists()
    assert (foreign / "sandbox").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="host: making a pid namespace needs root")
def test_what_a_dead_container_left_is_told_from_the_hosts_own_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its supervisor's pid says nothing here: whether its pid namespace has a process does."""
    monkeypatch.setattr(cgroup, "HOSTS_PIDS", os.stat("/proc/self/ns/pid").st_ino)
    command = "echo $(stat -Lc %i /proc/self/ns/pid); read _"
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as container:
        assert container.stdout is not None
        name = f"lambox-1-1-{container.stdout.readline().strip()}"
        assert not cgroup.is_orphaned(name)
        container.communicate("\n")
    assert cgroup.is_orphaned(name)
    monkeypatch.setattr(cgroup, "HOSTS_PIDS", 0)
    assert not cgroup.is_orphaned(name)


@pytest.mark.parametrize(("text", "number"), [("12\n", 12), ("max\n", None), ("", None)])
def test_numbers_in_files(tmp_path: Path, text: str, number: int | None) -> None:
    (tmp_path / "file").write_text(text)
    assert cgroup.read_int(str(tmp_path / "file")) == number
    assert cgroup.read_int(str(tmp_path / "missing")) is None


def test_fields_in_files(tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    path.write_text("low 0\noom_kill 4\nbroken\n")
    assert cgroup.read_field(str(path), "oom_kill") == 4
    assert cgroup.read_field(str(path), "oom") is None
    assert cgroup.read_field(str(tmp_path / "missing"), "oom") is None


def test_a_limit_that_is_refused_can_be_tried_by_hand(tmp_path: Path) -> None:
    with pytest.raises(ConfineError, match=r"echo 5 > .*/missing/pids\.max: No such file"):
        cgroup.write(f"{tmp_path}/missing/pids.max", "5")


# --- which of them


def test_no_cgroup_at_all_says_what_was_tried_and_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def v2_fails(cls: object) -> V2Tree:
        raise ConfineError("v2: not ours")

    def v1_fails(cls: object) -> V1Tree:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(V2Tree, "open", classmethod(v2_fails))
    monkeypatch.setattr(V1Tree, "open", classmethod(v1_fails))
    with pytest.raises(IsolationUnavailable, match=r"v2: not ours.*Permission denied") as caught:
        cgroup.detect()
    assert "Delegate=yes" in caught.value.remedy


def test_controllers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_v1, "mounted", lambda info, own: {"cpu": Path("/")})
    with pytest.raises(ConfineError, match="memory, pids"):
        V1Tree.open()


def test_a_gauge_opens_its_file_once_and_reads_on_when_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "memory.peak"
    gauge = cgroup.Gauge(str(path))
    assert gauge.read() is None  # the host has no such file
    path.write_text("9\n")
    assert gauge.read() == 9
    path.write_text("10\n")
    assert gauge.read() == 10
    before = len(os.listdir("/proc/self/fd"))
    gauge.close()
    gauge.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert gauge.read() is None
