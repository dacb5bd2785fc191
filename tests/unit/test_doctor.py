"""What doctor says of a host, and that serve refuses with the same words."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest

from lambox import config, doctor
from lambox.config import Config
from sandbox.confine import bwrap, cgroup, hosts, identity, launcher, seccomp, storage
from sandbox.confine.network import router
from sandbox.confine.spec import ConfineError, IsolationUnavailable

BWRAP = bwrap.Bwrap("/usr/bin/bwrap", (0, 8, 0))


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return config.load({"state": str(tmp_path / "state")}, environ={})


@pytest.fixture(autouse=True)
def way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's network is left alone; the real thing: tests/system/test_nat_server.py."""
    monkeypatch.setattr(router, "try_out", lambda _: "nat by 10.219.0.0/20")


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are its loop devices; the real thing: tests/system/test_storage.py."""
    monkeypatch.setattr(storage, "try_out", lambda _: None)


class FakeTree:
    closed = False

    def describe(self) -> str:
        return "cgroup v2 at /somewhere"

    def close(self) -> None:
        self.closed = True


def refuse(remedy: str = "apt-get install it", text: str = "it is not there") -> object:
    def raises(*_: object, **__: object) -> object:
        raise IsolationUnavailable(text, remedy)

    return raises


def bwrap_ends(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str = "") -> list[list[str]]:
    """A host with bwrap, whose every run ends like this."""
    runs: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(argv)
        return subprocess.CompletedProcess(argv, code, "", stderr)

    monkeypatch.setattr(bwrap, "find", lambda: BWRAP)
    monkeypatch.setattr(subprocess, "run", run)
    return runs


def test_every_check_has_a_verdict_and_every_trouble_a_remedy(settings: Config) -> None:
    results = doctor.examine(settings)
    assert {result.verdict for result in results} <= {"ok", "note", "missing"}
    assert [result for result in results if result.verdict == "missing" and not result.remedy] == []
    assert len({result.name for result in results}) == len(results)


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("4.14.0", "missing"), ("5.10.0-28-amd64", "note"), ("6.1.0", "ok"), ("6.18.44-x", "ok")],
)
def test_kernels(
    settings: Config, monkeypatch: pytest.MonkeyPatch, release: str, verdict: str
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    (result,) = doctor._kernel(settings)
    assert result.verdict == verdict
    assert release in result.found


@pytest.mark.parametrize(
    ("file", "value", "mend"),
    [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ],
)
def test_a_switch_that_forbids_user_namespaces_is_named_with_its_command(
    settings: Config, tmp_path: Path, file: str, value: str, mend: str
) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(value)
    (result,) = doctor._switches(settings, tmp_path)
    assert (result.verdict, result.remedy) == ("missing", mend)
    assert file.replace("/", ".") in result.found


def test_apparmors_switch_alone_forbids_nothing(settings: Config, tmp_path: Path) -> None:
    """bwrap may have a profile that lets it: only a try tells."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1")
    (result,) = doctor._switches(settings, tmp_path)
    assert result.verdict == "ok"


def test_a_sandbox_is_tried_with_every_namespace_of_the_real_ones(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = bwrap_ends(monkeypatch, 0)
    (result,) = doctor._sandbox(settings)
    assert result.verdict == "ok"
    unshared = {word for word in runs[0] if word.startswith("--unshare-")}
    kinds = ("user", "ipc", "pid", "uts", "cgroup", "net")
    assert unshared == {f"--unshare-{kind}" for kind in kinds}
    assert {"--disable-userns", "--as-pid-1"} <= set(runs[0])


def test_a_refused_sandbox_says_what_bwrap_said(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap_ends(monkeypatch, 1, "bwrap: setting up uid map: Permission denied\n")
    (result,) = doctor._sandbox(settings)
    assert result.verdict == "missing"
    assert "bwrap: setting up uid map: Permission denied" in result.found
    assert result.remedy


def test_without_bwrap_no_sandbox_is_tried(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bwrap, "find", refuse("apt-get install bubblewrap"))
    assert list(doctor._sandbox(settings)) == []
    (result,) = doctor._bwrap(settings)
    assert (result.verdict, result.remedy) == ("missing", "apt-get install bubblewrap")


def test_serve_refuses_with_doctors_words(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap_ends(monkeypatch, 1, "bwrap: No permissions to create new namespace\n")
    (result,) = doctor._sandbox(settings)
    with pytest.raises(IsolationUnavailable) as refused:
        doctor.require_sandbox(settings)
    assert result.found in str(refused.value)
    assert refused.value.remedy == result.remedy


def test_a_good_host_is_not_refused(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap_ends(monkeypatch, 0)
    monkeypatch.setattr(hosts, "SWITCHES", ())
    doctor.require_sandbox(settings)


def test_a_program_that_is_not_built(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "init_path", refuse("make setup"))
    (result,) = doctor._init(settings)
    assert (result.verdict, result.remedy) == ("missing", "make setup")


def test_cgroups_are_let_go_after_the_look(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = FakeTree()
    monkeypatch.setattr(cgroup, "detect", lambda: tree)
    (result,) = doctor._cgroup(settings)
    assert (result.verdict, result.found) == ("ok", "cgroup v2 at /somewhere, writable")
    assert tree.closed


@pytest.mark.parametrize(("allowed", "verdict"), [("", "missing"), ("cgroups", "note")])
def test_missing_cgroups_are_essential_unless_weaker_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, verdict: str
) -> None:
    monkeypatch.setattr(cgroup, "detect", refuse("systemd-run --user --scope lambox serve"))
    settings = config.load({"state": str(tmp_path), "allow_weaker": allowed}, environ={})
    (result,) = doctor._cgroup(settings)
    assert (result.verdict, result.remedy) == (verdict, "systemd-run --user --scope lambox serve")


@pytest.mark.parametrize(("allowed", "verdict"), [("", "missing"), ("seccomp", "note")])
def test_missing_seccomp_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, verdict: str
) -> None:
    monkeypatch.setattr(seccomp, "enforce", refuse("apt-get install libseccomp2"))
    settings = config.load({"state": str(tmp_path), "allow_weaker": allowed}, environ={})
    (result,) = doctor._seccomp(settings)
    assert (result.verdict, result.remedy) == (verdict, "apt-get install libseccomp2")


def test_a_trouble_without_a_remedy_is_still_told() -> None:
    result = doctor._refused("thing", ConfineError("cannot"))
    assert (result.verdict, result.found, result.remedy) == ("missing", "cannot", "")


@pytest.mark.parametrize(
    ("euid", "uids", "verdict", "says"),
    [
        (1000, None, "note", "all sandboxes have uid"),
        (0, None, "note", "too few are mapped"),
        (0, range(500_000, 500_010), "ok", "500000 to 500009, each .*; a server takes 10$"),
        (0, range(500_000, 504_800), "ok", "; a server takes 300$"),
    ],
)
def test_uids(
    settings: Config,
    monkeypatch: pytest.MonkeyPatch,
    euid: int,
    uids: range | None,
    verdict: str,
    says: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(identity, "choose", lambda *_: uids)
    (result,) = doctor._uids(settings)
    assert result.verdict == verdict
    assert re.search(says, result.found)


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = config.load({"state": str(tmp_path / "file" / "state")}, environ={})
    (result,) = doctor._state(settings)
    assert result.verdict == "missing"
    assert str(tmp_path / "file" / "state") in result.remedy


@pytest.mark.parametrize(
    ("zygote", "reason", "verdict", "says"),
    [
        (True, "", "ok", "8 to 16 sandboxes"),
        (True, "not started by root", "note", "ten times as long"),
        (False, "", "note", "switched off"),
    ],
)
def test_sandboxes_made_ahead(
    settings: Config,
    monkeypatch: pytest.MonkeyPatch,
    zygote: bool,
    reason: str,
    verdict: str,
    says: str,
) -> None:
    monkeypatch.setattr("sandbox.confine.launcher.unready", lambda: reason)
    (result,) = doctor._prepared(dataclasses.replace(settings, zygote=zygote))
    assert result.verdict == verdict
    assert says in result.found
    assert reason in result.found


def test_without_a_way_out_doctor_says_why_and_what_functions_get(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = doctor._network(settings)
    assert (result.verdict, result.found) == ("ok", "nat by 10.219.0.0/20")
    monkeypatch.setattr(router, "try_out", refuse("modprobe veth", "no veth"))
    (result,) = doctor._network(settings)
    assert (result.verdict, result.remedy) == ("note", "modprobe veth")
    assert result.found == 'no veth: functions have network = "none"'
    chosen = dataclasses.replace(
        settings, defaults=dataclasses.replace(settings.defaults, network="none")
    )
    (result,) = doctor._network(chosen)
    assert result.found == "no veth: no function can have it"


def tmp(settings: Config, how: str) -> doctor.Result:
    (found,) = doctor._tmp(dataclasses.replace(settings, tmp=how))  # type: ignore[arg-type]
    return found


def test_where_tmp_lies(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tmp(settings, "auto").verdict == tmp(settings, "disk").verdict == "ok"
    assert "on disk" in tmp(settings, "auto").found
    assert tmp(settings, "memory").verdict == "note"
    assert not settings.state.exists()  # looking makes no folders
    monkeypatch.setattr(storage, "try_out", refuse("modprobe loop", "there are no loop devices"))
    for how, verdict in (("auto", "note"), ("disk", "missing")):
        result = tmp(settings, how)
        assert (result.verdict, result.remedy) == (verdict, "modprobe loop")
        assert result.found.endswith(
            "in memory, and counts as the function's: there are no loop devices"
        )


def test_log_mode_of_system_calls_is_a_note(tmp_path: Path) -> None:
    """On a kernel that has it, as this one; and never "ok"."""
    settings = config.load({"state": str(tmp_path), "seccomp": "log"}, environ={})
    (result,) = doctor._seccomp(settings)
    assert (result.verdict, result.remedy) == ("note", "lambox serve --seccomp enforce")
    assert "log mode" in result.found
    settings = config.load({"state": str(tmp_path)}, environ={})
    (result,) = doctor._seccomp(settings)
    assert result.verdict == "ok"
    assert "log mode" not in result.found


def test_log_mode_is_not_gone_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "enforce", refuse("apt-get install libseccomp2"))
    flags = {"state": str(tmp_path), "seccomp": "log", "allow_weaker": "seccomp"}
    (result,) = doctor._seccomp(config.load(flags, environ={}))
    assert result.verdict == "missing"
