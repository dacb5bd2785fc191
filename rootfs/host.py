"""Owns the facts about this host's file system that the layout needs, read once at start."""

from __future__ import annotations

import os
from dataclasses import dataclass

USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec")
"""Parts of /usr an environment sees. Not /usr/local, /usr/src, /usr/games."""
SHARE = ("zoneinfo", "ca-certificates", "terminfo", "tcltk", "i18n", "mime", "nodejs")
"""Of /usr/share; Debian's own Node.js keeps parts of its standard library there."""
ETC = (
    "ld.so.cache",
    "alternatives",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "crypto-policies",
    "mime.types",
    "protocols",
    "services",
)
"""Of /etc: what linking, TLS and Debian's alternatives need; nothing that tells about this host."""

HIDDEN_FILES = (
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "kmsg",
    "timer_list",
    "timer_stats",
    "latency_stats",
    "sched_debug",
    "sysrq-trigger",
    "interrupts",
    "iomem",
    "ioports",
    "modules",
    "partitions",
    "locks",
    "cmdline",
    "config.gz",
    "diskstats",
    "cgroups",
    "softirqs",
    "schedstat",
    "zoneinfo",
    "buddyinfo",
    "swaps",
    "mdstat",
    "sys/fs/file-nr",
    "sys/kernel/random/boot_id",
)
HIDDEN_FOLDERS = (
    "acpi",
    "asound",
    "bus",
    "driver",
    "dynamic_debug",
    "fs",
    "irq",
    "pressure",
    "scsi",
)
"""Of /proc: what runc hides or makes read-only, and what tells about this machine and its other tenants. Most
is root's alone anyway. What libraries size themselves by (meminfo, vmstat, cpuinfo, stat, loadavg, uptime...) stays,
as on AWS; each hidden one costs a sandbox 0.1 ms."""


@dataclass(frozen=True, slots=True)
class Host:
    """`folders` are bound where they are, `links` (path, target) are made anew inside."""

    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    etc: tuple[str, ...]
    hidden_files: tuple[str, ...] = ()
    hidden_folders: tuple[str, ...] = ()
    """What this kernel has of HIDDEN_FILES and HIDDEN_FOLDERS, as paths."""


def scan(root: str = "/") -> Host:
    """Look at `root`: merged-usr hosts (/bin is a link) and others (/bin is a folder)."""
    folders: list[str] = []
    links: list[tuple[str, str]] = []
    for name in USR:
        for path in (f"/usr/{name}", f"/{name}"):
            real = root.rstrip("/") + path
            if os.path.islink(real):
                links.append((path, os.readlink(real)))
            elif os.path.isdir(real) and path != "/libexec":
                folders.append(path)
    base = root.rstrip("/")
    folders += [f"/usr/share/{name}" for name in SHARE if os.path.isdir(f"{base}/usr/share/{name}")]
    etc = tuple(f"/etc/{name}" for name in ETC if os.path.exists(f"{base}/etc/{name}"))
    return Host(tuple(folders), tuple(links), etc, *hidden(base))


def hidden(base: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files and the folders of /proc that are there, and are not for environments."""
    files = (f"/proc/{name}" for name in HIDDEN_FILES)
    folders = (f"/proc/{name}" for name in HIDDEN_FOLDERS)
    return (
        tuple(path for path in files if os.path.exists(base + path)),
        tuple(path for path in folders if os.path.isdir(base + path)),
    )


def resolv_conf(path: str = "/etc/resolv.conf") -> str:
    """Its content at the moment, for network = "host"; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
