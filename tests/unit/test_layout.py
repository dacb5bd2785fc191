"""rootfs.layout and rootfs.host: what stands where."""

from __future__ import annotations

from pathlib import Path

from rootfs import host
from rootfs.host import Host
from rootfs.layout import Bind, Directory, Entry, Symlink, Text, Tmpfs, late, plan, zygote
from rootfs.runtimes import Runtime

HOST = Host(
    folders=("/usr/bin", "/usr/lib"),
    links=(("/bin", "usr/bin"),),
    etc=("/etc/ld.so.cache",),
)
PYENV = Runtime(
    "python3.11", "python", "/opt/py/bin/python3.11", "/opt/py", "3.11.7", "/share/python3.11"
)
PROVIDED = Runtime("provided.al2023", "provided")


def targets(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    return {entry.target: entry for entry in entries}


def test_code_layers_and_tmp_stand_where_aws_has_them() -> None:
    found = targets((*plan(PROVIDED, host=HOST), *late("/srv/f", "/srv/layers", 512)))
    assert found["/var/task"] == Bind("/srv/f", "/var/task")
    assert found["/opt"] == Bind("/srv/layers", "/opt")
    assert found["/tmp"] == Tmpfs("/tmp", 512, 0o1777)
    assert found["/var/runtime"] == Directory("/var/runtime")


def test_without_layers_opt_is_an_empty_folder() -> None:
    assert targets(plan(PROVIDED, host=HOST))["/opt"] == Directory("/opt")
    assert late("/f", None, 1) == (Bind("/f", "/var/task"), Tmpfs("/tmp", 1))


def test_what_is_mounted_late_has_a_folder_to_stand_on() -> None:
    found = targets(plan(PROVIDED, host=HOST))
    assert all(isinstance(found[bind.target], Directory) for bind in late("/f", "/layers", 1))


def test_a_zygote_sees_what_its_forks_see_but_for_tmp_and_processes() -> None:
    there = plan(PYENV, host=HOST)
    zygotes = zygote(there)
    missing = [entry.target for entry in there if entry not in zygotes]
    assert missing == ["/var/task", "/opt", "/tmp", "/proc"]
    added = [entry.target for entry in zygotes if entry not in there]
    assert added == ["/var/task/lib", "/opt/lib", "/run/lambox/zygote/zygote.py"]


def test_a_prefix_elsewhere_is_moved_to_var_lang_and_its_packages_are_covered() -> None:
    found = targets(plan(PYENV, host=HOST))
    assert found["/var/lang"] == Bind("/opt/py", "/var/lang")
    site = "/var/lang/lib/python3.11/site-packages"
    assert found[site] == Bind("/share/python3.11", site)
    assert found["/var/runtime"] == Bind("/share/python3.11", "/var/runtime")
    assert found["/var/runtime/bootstrap.py"].source.endswith("lambox_bootstrap.py")  # type: ignore[union-attr]


def test_mounts_come_after_what_they_stand_on() -> None:
    order = [entry.target for entry in plan(PYENV, host=HOST)]
    assert order.index("/var/lang") < order.index("/var/lang/lib/python3.11/site-packages")
    assert order.index("/var/runtime") < order.index("/var/runtime/bootstrap.py")
    assert order.index("/usr/bin") < order.index("/bin")


def test_a_system_python_stays_in_place() -> None:
    python = Runtime("python3.11", "python", "/usr/bin/python3.11", "/usr", "3.11", "/share/p")
    found = targets(plan(python, host=HOST))
    link = "/var/lang/bin/python3.11"
    assert found[link] == Symlink("/usr/bin/python3.11", link)
    assert "/var/lang" not in found


def test_of_usr_local_only_the_interpreter_is_shown() -> None:
    python = Runtime(
        "python3.12", "python", "/usr/local/bin/python3.12", "/usr/local", "3.12", "/p", "", True
    )
    sources = {e.source for e in plan(python, host=HOST) if isinstance(e, Bind)}
    assert "/usr/local" not in sources
    assert "/usr/local/lib/python3.12" in sources
    assert "/usr/local/lib/libpython3.12.so.1.0" in sources


def test_node_on_our_own_client_unless_awss_is_provided() -> None:
    own = Runtime("nodejs20.x", "nodejs", "/usr/bin/node", "/usr", "20.1.0")
    aws = Runtime("nodejs22.x", "nodejs", "/n/bin/node", "/n", "22.1.0", "/share/nodejs22.x")
    first = targets(plan(own, host=HOST))
    second = targets(plan(aws, host=HOST))
    assert first["/var/runtime"].source.endswith("rootfs/inside/node")  # type: ignore[union-attr]
    assert second["/var/runtime"] == Bind("/share/nodejs22.x", "/var/runtime")
    assert second["/var/lang/bin/node"] == Bind("/n/bin/node", "/var/lang/bin/node")


def test_etc_tells_nothing_about_the_host() -> None:
    found = targets(plan(PROVIDED, host=HOST))
    texts = {entry.target: entry.content for entry in found.values() if isinstance(entry, Text)}
    assert "sbx_user1051:x:993:990:" in texts["/etc/passwd"]
    assert "127.0.0.1 localhost sandbox.localdomain sandbox" in texts["/etc/hosts"]
    assert texts["/etc/resolv.conf"] == ""


def test_name_servers_are_those_that_are_given() -> None:
    found = targets(plan(PROVIDED, host=HOST, resolv_conf="nameserver 192.0.2.1\n"))
    assert found["/etc/resolv.conf"] == Text("nameserver 192.0.2.1\n", "/etc/resolv.conf")


def test_nothing_of_the_hosts_private_folders() -> None:
    private = ("/home", "/root", "/var", "/run", "/sys", "/usr/local", "/usr/src", "/etc/passwd")
    entries = plan(PROVIDED, host=host.scan())
    for entry in entries:
        if isinstance(entry, Bind):
            assert not entry.source.startswith(private), entry


def test_a_merged_usr_is_scanned_as_links(tmp_path: Path) -> None:
    for name in ("bin", "lib", "lib64", "local", "src", "share/zoneinfo", "share/doc"):
        (tmp_path / "usr" / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (tmp_path / name).symlink_to(f"usr/{name}")
    found = host.scan(str(tmp_path))
    assert found.folders == ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
    assert found.links == (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"))


def test_a_split_usr_is_scanned_as_folders(tmp_path: Path) -> None:
    for name in ("usr/bin", "usr/lib", "bin", "lib", "etc/ssl/certs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    found = host.scan(str(tmp_path))
    assert set(found.folders) == {"/usr/bin", "/bin", "/usr/lib", "/lib"}
    assert found.links == ()
    assert found.etc == ("/etc/ssl/certs",)
    assert host.resolv_conf(str(tmp_path / "etc/resolv.conf")) == "nameserver 192.0.2.1\n"
    assert host.resolv_conf(str(tmp_path / "etc/none")) == ""
