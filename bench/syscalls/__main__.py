"""Which system calls real runtimes and programs make, by strace; writes tests/unit/data/syscalls.json.

    python -m bench.syscalls                    measure and write the file
    python -m bench.syscalls --print            show it
    python -m bench.syscalls --site-packages DIR    where numpy, pandas, ... of a throw-away venv are
    python -m bench.syscalls --only go          one workload; nothing is written

Outside any sandbox, since it is the allow-list itself that is to be found. The Python and Node.js runtimes
run as they do inside, against a Runtime API of this module's. What a host has not got (Go, Rust, Java,
strace itself) is left out and named. A second run adds to the file: other versions make other calls.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rootfs.inside
from rootfs import environ
from rootfs.runtimes import Runtime, discover

HERE = Path(__file__).parent
FILE = HERE.parents[1] / "tests/unit/data/syscalls.json"
LIMIT_S = 120
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
JAVA = ("-XX:+UseSerialGC", "-XX:+UseG1GC", "-XX:+UseParallelGC", "-XX:+UseZGC", "-XX:+UseNUMA")


class Failed(Exception):
    """A workload did not do all it should: what it left out may make calls that nobody saw."""


def traced(
    argv: list[str], env: dict[str, str], *, done: threading.Event | None = None
) -> set[str]:
    """The names of all calls of a program and its children. `done`: it is ended then, else by itself."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        command = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(trace), *argv]
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            if done is not None:
                threading.Thread(target=_until_ended, args=(process, done), daemon=True).start()
                if not done.wait(LIMIT_S) or process.poll() is not None:
                    raise Failed(f"{argv[0]} ended early, or did not within {LIMIT_S} s")
                os.killpg(process.pid, signal.SIGTERM)
            elif process.wait(LIMIT_S):
                raise Failed(f"{' '.join(argv)} ended with {process.returncode}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = trace.read_text(errors="replace").splitlines()
    return {match[1] for line in lines if (match := CALL.match(line))}


def _until_ended(process: subprocess.Popen[bytes], done: threading.Event) -> None:
    process.wait()
    done.set()


@contextmanager
def runtime_api() -> Iterator[tuple[str, threading.Event, list[bytes]]]:
    """Gives out two events, then none. (address, set when both are answered, the answers)"""
    done, answers, given = threading.Event(), list[bytes](), iter(("1", "2"))

    class Face(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Others than runtimes (curl, wget) may ask here too.
            number = next(given, None) if self.path.endswith("/next") else "0"
            if number is None:
                done.wait(LIMIT_S)
                return
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", number)
            self.send_header("Lambda-Runtime-Deadline-Ms", "99999999999999")
            self.send_header(
                "Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:1:function:f"
            )
            self.send_header(
                "Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0"
            )
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            answers.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if len(answers) == 2 or not self.path.endswith("/response"):
                done.set()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A runtime that is ended hangs up."""

    server = Server(("127.0.0.1", 0), Face)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", done, answers
    finally:
        server.shutdown()
        server.server_close()


def runtime(found: Runtime, site_packages: str) -> set[str]:
    """One of ours, with AWS's client and the handler beside this file."""
    inside = Path(next(iter(rootfs.inside.__path__)))
    with runtime_api() as (address, done, answers), tempfile.TemporaryDirectory() as folder:
        env = dict(environ.runtime_environment(found))
        env |= {"PATH": os.environ["PATH"], "LAMBDA_TASK_ROOT": str(HERE), "HOME": folder}
        env |= {"AWS_LAMBDA_RUNTIME_API": address, "_HANDLER": "handler.handler"}
        env |= {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_VERSION": "1"}
        env |= {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", "LAMBDA_RUNTIME_DIR": str(found.client)}
        env |= {
            "AWS_REGION": "us-east-1",
            "PYTHONPATH": f"{site_packages}:{found.client}",
            "LD_LIBRARY_PATH": "",
        }
        if found.family == "python":
            argv = [found.interpreter, "-S", str(inside / "python/lambox_bootstrap.py")]
        else:
            argv = [found.interpreter, str(inside / "node/index.mjs")]
        calls = traced(argv, env, done=done)
    for answer in answers:
        parts = json.loads(answer)
        if "errorType" in parts or not answers:
            raise Failed(f"{found.identifier}: {answer.decode()}")
    for part, what in json.loads(answers[0]).items():
        if what != "done":
            print(f"  {found.identifier}: {part}: {what}")
    return calls


def workloads(site_packages: str, work: Path) -> Iterator[tuple[str, str, Any]]:
    """(family, name, what measures it)"""
    plain = {"PATH": os.environ["PATH"], "HOME": str(work)}
    for found in discover():
        if not found.problem and found.family != "provided":
            ours = found.family != "python" or found.interpreter.endswith(
                site_python(site_packages)
            )
            packages = site_packages if ours and found.family == "python" else ""
            yield (
                found.family,
                f"{found.identifier} ({found.version})",
                lambda one=found, where=packages: runtime(one, where),
            )
    with runtime_api() as (address, _, _):
        script = ["bash", str(HERE / "tools.sh"), address]
        yield "provided", "bash and tools", lambda: traced(script, plain)
    if shutil.which("go"):
        build = {**plain, "GOCACHE": str(work / "go"), "GO111MODULE": "off"}
        subprocess.run(
            ["go", "build", "-o", work / "main-go", HERE / "main.go"], env=build, check=True
        )
        yield "provided", version("go", "version"), lambda: traced([str(work / "main-go")], plain)
    if shutil.which("rustc"):
        for name in ("main.rs",):
            subprocess.run(["rustc", "-O", "-o", work / "main-rs", HERE / name], check=True)
        yield (
            "provided",
            version("rustc", "--version"),
            lambda: traced([str(work / "main-rs")], plain),
        )
    if shutil.which("javac"):
        subprocess.run(["javac", "-d", work, HERE / "Main.java"], check=True)
        for option in JAVA:
            argv = ["java", option, "-Xmx256m", "-cp", str(work), "Main"]
            yield (
                "provided",
                f"{version('javac', '-version')} {option}",
                lambda argv=argv: traced(argv, plain),
            )


def site_python(site_packages: str) -> str:
    found = re.search(r"python3\.\d+", site_packages)
    return found[0] if found else "nothing"


def version(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.syscalls", description=__doc__)
    parser.add_argument("--print", action="store_true", help="show what has been measured")
    parser.add_argument(
        "--site-packages",
        default="",
        help="of a venv with boto3, numpy, pandas, psutil, cryptography",
    )
    parser.add_argument("--only", default="", help="part of a workload's name; nothing is written")
    options = parser.parse_args()
    known = json.loads(FILE.read_text()) if FILE.exists() else {"measured_on": [], "calls": {}}
    if options.print:
        for family, names in known["calls"].items():
            print(f"{family}: {len(names)} calls")
            for name, users in sorted(names.items()):
                print(f"  {name:24} {', '.join(users)}")
        return 0
    if platform.machine() != "x86_64" or not shutil.which("strace"):
        print("strace on x86-64 is needed (names differ elsewhere). Hint: apt-get install strace")
        return 3
    with tempfile.TemporaryDirectory() as folder:
        for family, name, measure in workloads(options.site_packages, Path(folder)):
            if options.only not in name:
                continue
            try:
                calls = measure()
            except Failed as exc:
                print(f"{name}: {exc}", file=sys.stderr)
                return 1
            print(f"{family}: {name}: {len(calls)} calls")
            for call in calls:
                users = known["calls"].setdefault(family, {}).setdefault(call, [])
                if name not in users:
                    users.append(name)
                    users.sort()
    if not options.only:
        here = f"Linux {platform.release()}, {' '.join(platform.libc_ver())}"
        known["measured_on"] = sorted({*known["measured_on"], here})
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(f"written: {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
