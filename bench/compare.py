"""lambox beside AWS's Runtime Interface Emulator: 20 cold and 1,000 warm invocations, alternating.

    .venv/bin/python bench/compare.py PATH/TO/aws-lambda-rie-x86_64

The emulator's binary is inside the PyPI wheel aws-sam-cli (samcli/local/rapid/). Both run the same handler on
the same interpreter with the same awslambdaric. Cold for the emulator is process start to first answer (it serves
one function and has no other cold start); for lambox it is one invocation of a function that has no
environment. Times are wall-clock on a shared machine: read the ratios.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HANDLER = "def handler(event, context):\n    return {'hello': event}\n"
EVENT = b'{"n": 1}'
COLD, WARM, ROUNDS = 20, 1000, 5


def post(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("POST", path, EVENT)
    reply = connection.getresponse()
    body = reply.read()
    assert reply.status == 200, (reply.status, body)
    assert body == b'{"hello": {"n": 1}}', body
    return body


@contextlib.contextmanager
def lambox(functions: Path, state: Path) -> Iterator[int]:
    command = Path(sys.executable).with_name("lambox")
    process = subprocess.Popen(
        [command, "serve", "--functions", functions, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "LAMBOX_STATE": str(state)},
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def emulator(rie: str, code: Path, port: int) -> Iterator[None]:
    client = Path(sys.prefix, "share", "lambox", f"python3.{sys.version_info.minor}")
    process = subprocess.Popen(
        [
            rie,
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{port}",
            sys.executable,
            "-m",
            "awslambdaric",
            "handler.handler",
        ],
        cwd=code,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{client}:{code}",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "15",
        },
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


RIE_PATH = "/2015-03-31/functions/function/invocations"


def emulator_cold(rie: str, code: Path, port: int) -> float:
    began = time.perf_counter()
    with emulator(rie, code, port):
        while True:
            try:
                post(http.client.HTTPConnection("127.0.0.1", port, timeout=20), RIE_PATH)
            except ConnectionRefusedError:
                time.sleep(0.0005)
                continue
            return time.perf_counter() - began


def warm(port: int, path: str, count: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    post(connection, path)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        post(connection, path)
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    rie = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for number in range(COLD + 1):
            code = root / "functions" / f"f{number}"
            code.mkdir(parents=True)
            (code / "handler.py").write_text(HANDLER)
            (code / "function.toml").write_text("memory_size = 1769\n")
        code = root / "functions" / "f0"
        cold: dict[str, list[float]] = {"lambox": [], "emulator": []}
        hot: dict[str, list[float]] = {"lambox": [], "emulator": []}
        with lambox(root / "functions", root / "state") as port:
            post(http.client.HTTPConnection("127.0.0.1", port), _aws("f0"))
            for number in range(1, COLD + 1):
                began = time.perf_counter()
                post(http.client.HTTPConnection("127.0.0.1", port), _aws(f"f{number}"))
                cold["lambox"].append(time.perf_counter() - began)
                cold["emulator"].append(emulator_cold(rie, code, 18000 + number))
            with emulator(rie, code, 18100):
                time.sleep(1)
                for _ in range(ROUNDS):
                    hot["lambox"] += warm(port, _aws("f0"), WARM // ROUNDS)
                    hot["emulator"] += warm(18100, RIE_PATH, WARM // ROUNDS)
        for name, times in (("cold", cold), ("warm", hot)):
            ours, theirs = statistics.median(times["lambox"]), statistics.median(times["emulator"])
            for who in ("lambox", "emulator"):
                ordered = sorted(times[who])
                print(
                    f"{name} {who:9} n={len(ordered):4} min {ordered[0] * 1e3:7.2f} ms  median "
                    f"{statistics.median(ordered) * 1e3:7.2f} ms  p99 "
                    f"{ordered[int(len(ordered) * 0.99) - 1] * 1e3:7.2f} ms  max {ordered[-1] * 1e3:7.2f} ms"
                )
            print(f"{name} median ratio lambox / emulator: {ours / theirs:.2f}")


def _aws(name: str) -> str:
    return f"/2015-03-31/functions/{name}/invocations"


if __name__ == "__main__":
    main()
