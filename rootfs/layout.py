"""Owns the shape of an environment's file system: which entry stands at which path.

The entry types are plain values; `sandbox.confine.bwrap` turns them into mounts. Order matters:
an entry is put in place after those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rootfs import environ
from rootfs.host import Host
from rootfs.runtimes import Runtime

INSIDE = Path(__file__).resolve().parent / "inside"


@dataclass(frozen=True, slots=True)
class Bind:
    """A host file or folder, read-only (nosuid, nodev) at `target`."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """An empty writable folder, `size` bytes at most, permission bits `mode`; in memory, unless it is late."""

    target: str
    size: int
    mode: int = 0o1777


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link at `target` that says `to`."""

    to: str
    target: str


@dataclass(frozen=True, slots=True)
class Text:
    """A small read-only file with `content`."""

    content: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """An empty folder, read-only once the root is sealed."""

    target: str


@dataclass(frozen=True, slots=True)
class Proc:
    """The environment's own procfs. `files` and `folders` of it cannot be read (each has to be there)."""

    target: str = "/proc"
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dev:
    """A minimal /dev: null, zero, full, random, urandom, tty and the usual links."""

    target: str = "/dev"


Late = Bind | Tmpfs
"""What may be put into an environment that stands already."""
Entry = Bind | Tmpfs | Symlink | Text | Directory | Proc | Dev


PASSWD = """\
root:x:0:0:root:/root:/sbin/nologin
sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin
"""
GROUP = "root:x:0:\nsbx_group1051:x:990:\n"
HOSTS = "127.0.0.1 localhost sandbox.localdomain sandbox\n::1 localhost\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


def plan(runtime: Runtime, *, host: Host, resolv_conf: str = "") -> tuple[Entry, ...]:
    """What every environment of a runtime sees; /var/task, /opt and /tmp are empty folders, for `late`.

    Pure: whether the sources exist is the caller's affair. Nothing of the host's /home, /root,
    /var, /run and /sys is in it.
    """
    return (
        *_system(host),
        *_etc(host, resolv_conf),
        *_lang(runtime),
        *_runtime(runtime),
        Directory("/var/task"),
        Directory("/opt"),
        Directory("/tmp"),
        Proc(files=host.hidden_files, folders=host.hidden_folders),
        Dev(),
    )


def late(code: str, opt: str | None, tmp_bytes: int) -> tuple[Late, ...]:
    """What is one function's own: its code, its layers (None: there are none), and its /tmp."""
    layers = [Bind(opt, "/opt")] if opt else []
    return (Bind(code, "/var/task"), *layers, Tmpfs("/tmp", tmp_bytes))


def zygote(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The same for a zygote (rootfs/inside/python/zygote.py): no /tmp, no process table, no function.

    The folders in which a function may bring libraries are there, empty: the dynamic linker remembers,
    across a fork too, which of LD_LIBRARY_PATH did not exist.
    """
    own = ("/var/task", "/opt", "/tmp")
    kept = tuple(
        entry
        for entry in entries
        if not isinstance(entry, Tmpfs | Proc) and entry.target not in own
    )
    return (
        *kept,
        Directory("/var/task/lib"),
        Directory("/opt/lib"),
        Bind(f"{INSIDE}/python/zygote.py", "/run/lambox/zygote/zygote.py"),
    )


def _system(host: Host) -> list[Entry]:
    entries: list[Entry] = [Bind(folder, folder) for folder in host.folders]
    entries += [Symlink(to, path) for path, to in host.links]
    return entries


def _etc(host: Host, resolv_conf: str) -> list[Entry]:
    return [
        *(Bind(path, path) for path in host.etc),
        Text(PASSWD, "/etc/passwd"),
        Text(GROUP, "/etc/group"),
        Text(HOSTS, "/etc/hosts"),
        Text(NSSWITCH, "/etc/nsswitch.conf"),
        Text(resolv_conf, "/etc/resolv.conf"),
        Symlink("/usr/share/zoneinfo/UTC", "/etc/localtime"),
    ]


def _lang(runtime: Runtime) -> list[Entry]:
    """/var/lang: an interpreter under /usr stays where it is, any other is moved here.

    A Python finds its library by the landmark lib/python3.x/os.py beside its bin folder, so a
    prefix may be moved whole. The host's site-packages are covered by the client's folder: they are
    none of the function's, and AWS has its client there too.
    """
    if runtime.family == "provided":
        return []
    name = runtime.identifier if runtime.family == "python" else "node"
    if runtime.prefix == "/usr":
        link = f"/var/lang/bin/{name}"
        links: list[Entry] = [Symlink(runtime.interpreter, link)]
        if runtime.family == "python":
            links += [Symlink(name, f"/var/lang/bin/{short}") for short in ("python3", "python")]
        return links
    if runtime.family == "nodejs":
        return [Bind(runtime.interpreter, "/var/lang/bin/node")]
    site = f"/var/lang/lib/{runtime.identifier}/site-packages"
    if runtime.prefix != "/usr/local":
        return [Bind(runtime.prefix, "/var/lang"), Bind(runtime.client, site)]
    library = f"lib/{runtime.identifier}"
    shared = f"/usr/local/lib/libpython{runtime.minor}.so.1.0"
    return [
        Bind(runtime.interpreter, f"/var/lang/bin/{name}"),
        Bind(f"/usr/local/{library}", f"/var/lang/{library}"),
        *([Bind(shared, shared.replace("/usr/local", "/var/lang"))] if runtime.shared else []),
        Bind(runtime.client, site),
    ]


def _runtime(runtime: Runtime) -> list[Entry]:
    """/var/runtime: the client's folder, our bootstrap on the empty file provisioning left for it.

    Named bootstrap.py because awslambdaric leaves frames of such files out of tracebacks.
    """
    if runtime.family == "provided":
        return [Directory("/var/runtime")]
    if runtime.family == "python":
        return [
            Bind(runtime.client, "/var/runtime"),
            Bind(f"{INSIDE}/python/lambox_bootstrap.py", "/var/runtime/bootstrap.py"),
        ]
    return [
        Bind(runtime.client or f"{INSIDE}/node", "/var/runtime"),
        Bind(f"{INSIDE}/node/parked.mjs", environ.PARKED),
    ]
