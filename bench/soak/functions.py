"""Owns the functions that a soak invokes: written into a temp folder, each with its acts.

A handler's first deed is a line `SOAK ID` in its log, so that executions can be counted from outside. The
event says what to do then: {"id": ..., "act": ..., "n": ...}.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

PYTHON = """
import json, os, signal, subprocess, threading, time

def handler(event, context):
    print("SOAK", event["id"], flush=True)
    act, n = event["act"], event.get("n", 0)
    if context.aws_request_id != event["id"]:
        return {"mixed": context.aws_request_id}
    if act == "crash":
        raise RuntimeError("asked to crash")
    if act == "exit":
        os._exit(n)
    if act == "signal":
        os.kill(os.getpid(), n)
        time.sleep(60)
    if act == "oom":
        hold = []
        while True:
            hold.append(b"x" * (8 << 20))
    if act == "timeout":
        time.sleep(60)
    if act == "sleep":
        time.sleep(n / 1000)
    if act == "spin":
        end = time.process_time() + n / 1000
        while time.process_time() < end:
            pass
    if act == "log":
        for i in range(n // 100):
            print("x" * 99)
    if act == "big":
        return {"id": event["id"], "pad": "x" * n}
    if act == "tmp":
        path = "/tmp/" + event["id"]
        with open(path, "wb") as file:
            file.write(b"x" * n)
        size = os.stat(path).st_size
        os.unlink(path)
        return {"id": event["id"], "size": size}
    if act == "leave-child":
        subprocess.Popen(["/bin/sleep", "1000"])
    if act == "leave-thread":
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    return {"id": event["id"]}
"""
NODE = """
export const handler = async (event, context) => {
  console.log(`SOAK ${event.id}`);
  if (context.awsRequestId !== event.id) return { mixed: context.awsRequestId };
  if (event.act === "log") process.stdout.write(("x".repeat(99) + "\\n").repeat(event.n / 100));
  if (event.act === "crash") throw new Error("asked to crash");
  if (event.act === "exit") process.exit(event.n);
  if (event.act === "sleep") await new Promise((done) => setTimeout(done, event.n));
  if (event.act === "big") return { id: event.id, pad: "x".repeat(event.n) };
  return { id: event.id };
};
"""
BASH = r"""#!/bin/bash
api=$AWS_LAMBDA_RUNTIME_API
export LC_ALL=C
request() {
  exec 3<>"/dev/tcp/${api%:*}/${api#*:}" || exit 1
  printf '%s /2018-06-01/runtime/invocation/%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n' \
    "$1" "$2" "$api" >&3
  printf 'Content-Length: %d\r\n\r\n%s' "${#3}" "$3" >&3
  length=0
  while IFS= read -r line <&3 && line=${line%$'\r'} && [[ -n $line ]]; do
    case ${line,,} in
      lambda-runtime-aws-request-id:*) id=${line#*: } ;;
      content-length:*) length=${line#*: } ;;
    esac
  done
  body=
  ((length)) && IFS= read -r -d '' -N "$length" body <&3
  exec 3<&-
}
while true; do
  request GET next
  echo "SOAK $id"
  case $body in
    *'"act":"log"'*)
      for ((i = 0; i < 1300; i++)); do printf 'x%0999d\n'; done
      request POST "$id/response" "{\"id\":\"$id\"}" ;;
    *'"act":"exit"'*) exit 3 ;;
    *'"act":"crash"'*) request POST "$id/error" '{"errorMessage":"asked","errorType":"RuntimeError"}' ;;
    *'"act":"sleep"'*) read -rt 0.05 <> <(:); request POST "$id/response" "{\"id\":\"$id\"}" ;;
    *) request POST "$id/response" "{\"id\":\"$id\"}" ;;
  esac
done
"""
# Three files that have to be of one revision: a module, one that it imports, a file read when invoked.
RELOADED = """
import part
REVISION = {revision}

def handler(event, context):
    print("SOAK", event["id"], flush=True)
    if event["act"] == "log":
        print(("x" * 99 + "\\n") * (event["n"] // 100))
    with open("/var/task/revision.txt") as file:
        read = int(file.read())
    return {{"id": event["id"], "revisions": [REVISION, part.REVISION, read]}}
"""
RENAMED = """
REVISION = {revision}

def handler(event, context):
    print("SOAK", event["id"], flush=True)
    if event["act"] == "log":
        print(("x" * 99 + "\\n") * (event["n"] // 100))
    return {{"id": event["id"], "revisions": [REVISION, LAST]}}

LAST = {revision}
"""
HOGS = """
import os, socket, time

def handler(event, context):
    HOGS[event["act"]]()
    return {"id": event["id"]}

def forks():
    while True:
        try:
            if os.fork() == 0:
                continue
        except OSError:
            pass

def memory():
    hold = []
    while True:
        try:
            hold.append(bytearray(os.urandom(1 << 20)))
            if len(hold) > 200:
                for block in hold:
                    block[::4096] = block[::4096]
        except MemoryError:
            hold.clear()

def cpu():
    for _ in range(7):
        if os.fork() == 0:
            break
    while True:
        pass

def disk():
    block = os.urandom(1 << 20)
    while True:
        try:
            with open("/tmp/hog", "wb", buffering=0) as file:
                while True:
                    file.write(block)
                    os.fsync(file.fileno())
        except OSError:
            os.unlink("/tmp/hog")

def log():
    text = b"\\n" * 1000 + b"x" * 64000 + b"\\n"
    for _ in range(3):
        if os.fork() == 0:
            break
    while True:
        os.write(1, text)

def descriptors():
    held = []
    for _ in range(3):
        os.fork()
    while True:
        try:
            held.append(os.memfd_create("hog"))
            held.extend(os.pipe())
        except OSError:
            for fd in held:
                if not isinstance(fd, int):
                    continue
                try:
                    os.close(fd)
                except OSError:
                    pass
            held = []

def sockets():
    \"\"\"Connections to its own Runtime API: made, spoken to in halves, dropped.\"\"\"
    host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    held = []
    while True:
        try:
            one = socket.create_connection((host, int(port)), timeout=0.5)
            one.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\\r\\nHost: x\\r\\n")
            held.append(one)
        except OSError:
            pass
        if len(held) > 500:
            held.clear()

HOGS = {
    "fork bomb": forks, "memory hog": memory, "cpu hog": cpu, "disk hog": disk, "log flood": log,
    "descriptor hog": descriptors, "connection hog": sockets,
}
"""
QUICK = "timeout = 30\nmemory_size = {mb}\nidle_timeout = 2\n"
HOG_NAMES = (
    "fork bomb",
    "memory hog",
    "cpu hog",
    "disk hog",
    "log flood",
    "descriptor hog",
    "connection hog",
)


@dataclass(frozen=True, slots=True)
class Written:
    """The names of what was written, by what they are for."""

    plain: tuple[str, ...]
    """Python, with all acts."""
    others: tuple[str, ...]
    """Other runtimes: the acts that `NODE` and `BASH` know."""
    reloaded: tuple[str, ...] = ("reloaded", "renamed")
    late: str = "late"
    """timeout 1 s."""
    oom: str = "small"
    """128 MB."""
    reserved: str = "reserved"
    hog: str = "hog"
    """1769 MB: the right to a whole core."""
    small_hog: str = "small-hog"
    neighbour: str = "neighbour"

    @property
    def everyone(self) -> tuple[str, ...]:
        """But the hogs."""
        return (
            *self.plain,
            *self.others,
            *self.reloaded,
            self.late,
            self.oom,
            self.reserved,
            self.neighbour,
        )


def write(folder: Path) -> Written:
    """Fill `folder`; Node.js is left out where the host has none."""
    folder.mkdir()
    folder.chmod(0o755)
    _add(folder, "plain", PYTHON)
    _add(folder, "wide", PYTHON, mb=1024)
    _add(folder, "unfrozen", PYTHON, "freeze = false\n")
    _add(folder, "provisioned", PYTHON, "provisioned_concurrency = 2\n")
    _add(folder, "reserved", PYTHON, "reserved_concurrency = 3\n")
    _add(folder, "small", PYTHON, mb=128)
    _add(folder, "late", PYTHON, timeout=1)
    _add(folder, "neighbour", PYTHON, mb=512)
    _add(folder, "hog", HOGS, timeout=4, mb=1769)
    _add(folder, "small-hog", HOGS, timeout=4, mb=256)
    _add(folder, "bash", BASH, 'runtime = "provided.al2023"\n', file="bootstrap")
    others = ["bash"]
    if shutil.which("node"):
        _add(folder, "node", NODE, file="index.mjs")
        others.append("node")
    _add(folder, "renamed", RENAMED.format(revision=0))
    _reloaded(folder / "reloaded", 0)
    return Written(("plain", "wide", "unfrozen", "provisioned"), tuple(others))


def reload(folder: Path, name: str, revision: int) -> None:
    """New code for one of `Written.reloaded`, by one rename: nobody can see half of it."""
    if name == "renamed":
        fresh = folder / name / ".handler.py.tmp.1"
        fresh.write_text(RENAMED.format(revision=revision))
        fresh.rename(folder / name / "handler.py")
        return
    fresh = folder.parent / f"fresh-{name}"
    shutil.rmtree(fresh, ignore_errors=True)
    _reloaded(fresh, revision)
    _exchange(fresh, folder / name)


def _reloaded(folder: Path, revision: int) -> None:
    folder.mkdir()
    (folder / "function.toml").write_text(QUICK.format(mb=512))
    (folder / "handler.py").write_text(RELOADED.format(revision=revision))
    (folder / "part.py").write_text(f"REVISION = {revision}\n")
    (folder / "revision.txt").write_text(str(revision))


def _add(
    folder: Path,
    name: str,
    code: str,
    toml: str = "",
    *,
    file: str = "handler.py",
    mb: int = 512,
    timeout: int = 30,
) -> None:
    (folder / name).mkdir()
    text = QUICK.format(mb=mb).replace("timeout = 30", f"timeout = {timeout}", 1)
    (folder / name / "function.toml").write_text(text + toml)
    (folder / name / file).write_text(code)
    if file == "bootstrap":
        (folder / name / file).chmod(0o755)


def _exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE (linux/fs.h)."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
