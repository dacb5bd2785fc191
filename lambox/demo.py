"""Owns the minute's tour (`python -m lambox.demo`): a real server, seen from outside.

Every line is one thing that happened and how long it took for the caller. What did not behave is
marked and makes the exit code 1; the tour goes on to its end either way, in less than a minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lambox.client import Answer, Refused, Server, Unreachable

LIMIT_S = 55.0
IDLE_S = 2.0
PARALLEL = 8
ALIASED = 200
SLOW_TIMEOUT_S = 2.0
"""Of functions/slow/function.toml."""
PROMISE_MS = 100
"""The caller of a killed invocation is answered this soon after the deadline."""
KEEPS_LONGER = "timelapse"
"""Its function.toml has an idle_timeout of its own."""


class Misbehaved(Exception):
    """A step did not do what it shows."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Misbehaved(otherwise)


@dataclass(slots=True)
class Tour:
    """Prints steps as they happen and remembers whether all went well."""

    console: Console
    began_at: float = field(default_factory=time.monotonic)
    failures: int = 0

    def step(self, title: str, run: Callable[[], str]) -> None:
        """`run` returns what happened, in rich's markup. Misbehaved and a lost server are shown."""
        start = time.monotonic()
        try:
            mark, what = "[green]✓[/]", run()
        except (Misbehaved, Refused, Unreachable, ValueError, KeyError) as exc:
            self.failures += 1
            mark, what = "[bold red]✗[/]", f"[red]{escape(f'{type(exc).__name__}: {exc}')}[/]"
        self.line(mark, title, what, time.monotonic() - start)

    def line(self, mark: str, title: str, what: str, took_s: float | None = None) -> None:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(width=18, style="bold")
        grid.add_column(ratio=1)
        grid.add_column(width=9, justify="right", style="cyan")
        grid.add_row(mark, title, what, "" if took_s is None else span(took_s))
        self.console.print(grid)


def span(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def main() -> int:
    functions = Path(sys.argv[1] if len(sys.argv) > 1 else "functions")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=118)
    tour = Tour(console)
    console.print(f"[bold]lambox serve[/], seen from outside: functions of {functions.absolute()}")
    with tempfile.TemporaryDirectory(prefix="lambox-demo-") as scratch:
        errors = Path(scratch, "stderr")
        with running_server(functions, scratch, errors) as child:
            url = wait_until_ready(tour, child)
            if url:
                show(tour, Server(url))
                stop(tour, child)
        if tour.failures:
            console.print("[red]The server's last words:[/]")
            for line in errors.read_text(errors="replace").expandtabs(2).splitlines()[-20:]:
                console.print(f"  {escape(line)}", soft_wrap=True)
    total = time.monotonic() - tour.began_at
    if tour.failures:
        console.print(f"[bold red]{tour.failures} did not behave[/], {total:.1f} s in all")
        return 1
    console.print(f"[bold green]All behaved[/], {total:.1f} s in all. Next: [bold]lambox serve[/]")
    return 0


@contextlib.contextmanager
def running_server(functions: Path, scratch: str, errors: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that is gone at the end, whatever happens, and never lives longer than LIMIT_S."""
    environ = {
        **os.environ,
        "LAMBOX_STATE": f"{scratch}/state",
        "LAMBOX_DEFAULT_IDLE_TIMEOUT": str(IDLE_S),
    }
    argv = [sys.executable, "-m", "lambox", "serve", "--functions", str(functions), "--port", "0"]
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ
        )
    watchdog = threading.Timer(LIMIT_S, child.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def wait_until_ready(tour: Tour, child: subprocess.Popen[str]) -> str:
    url = ""

    def ready() -> str:
        nonlocal url
        line = child.stdout.readline().strip() if child.stdout is not None else ""
        match = re.search(r"http://\S+", line)
        expect(match is not None, "the server did not start")
        assert match is not None
        url = match[0]
        return escape(line)

    tour.step("start", ready)
    return url


def show(tour: Tour, server: Server) -> None:
    tour.step("cold invoke", lambda: hello(server, cold=True))
    tour.step("warm invoke", lambda: hello(server, cold=False))
    tour.step("state is kept", lambda: counter(server))
    tour.step("scaling out", lambda: parallel(server))
    tour.step("timeout", lambda: timeout(server))
    tour.step("out of memory", lambda: out_of_memory(server))
    tour.step("runtime in bash", lambda: bash(server))
    rows = {row["name"]: row for row in server.functions()}
    if rows.get("node-hello", {}).get("state") == "ready":
        tour.step("Node.js", lambda: node(server))
    else:
        why = rows.get("node-hello", {}).get("problem", "no such function")
        tour.line("-", "Node.js", f"[dim]left out: {escape(why)}[/]")
    tour.step("time-lapse", lambda: timelapse(server))
    tour.step("Lambda API", lambda: lambda_api(server))
    tour.step("a weighted alias", lambda: alias(server))
    tour.step("idle eviction", lambda: eviction(server))


def call(server: Server, name: str, event: object) -> tuple[dict[str, Any], Answer]:
    """A successful invocation. Raises Misbehaved for a function error."""
    answer = server.invoke(name, json.dumps(event).encode())
    said = answer.payload.decode("utf-8", "replace")
    expect(not answer.function_error, f"{name} failed: {said}")
    return json.loads(said), answer


def report(answer: Answer) -> str:
    return next((line for line in answer.log_tail.splitlines() if line.startswith("REPORT")), "")


def measured(answer: Answer, what: str) -> str:
    match = re.search(rf"\b{what}: ([\d.]+ \w+)", report(answer))
    return match[1] if match else "?"


def hello(server: Server, *, cold: bool) -> str:
    greeting, answer = call(server, "hello", {"name": "lambox"})
    expect(greeting["greeting"] == "Hello, lambox!", f"it answered {greeting}")
    expect(("Init Duration" in report(answer)) == cold, "warm instead of cold, or the reverse")
    said = f"hello answers “{greeting['greeting']}”"
    if cold:
        return f"{said} from a fresh sandbox; its init took {measured(answer, 'Init Duration')}"
    return f"{said} from the same sandbox; the handler took {measured(answer, 'Duration')}"


def counter(server: Server) -> str:
    answers = [call(server, "counter", {"by": 1})[0] for _ in range(3)]
    counts = [answer["count"] for answer in answers]
    expect(counts == [1, 2, 3], f"it counted {counts}")
    return f"counter, three times: {', '.join(map(str, counts))}"


def live(server: Server, name: str) -> int:
    gone = ("dead", "gone", "stopping")
    rows = server.environments()
    return sum(row["function"] == name and row["state"] not in gone for row in rows)


def parallel(server: Server) -> str:
    most = 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        calls: list[Future[tuple[dict[str, Any], Answer]]] = [
            pool.submit(call, server, "slow", {"seconds": 1.5}) for _ in range(PARALLEL)
        ]
        while not all(one.done() for one in calls):
            most = max(most, live(server, "slow"))
            time.sleep(0.05)
        answers = [one.result()[0] for one in calls]
    expect(all(answer == {"slept": 1.5} for answer in answers), f"they answered {answers}")
    expect(most >= PARALLEL // 2, f"only {most} environments for {PARALLEL} invocations")
    return f"{PARALLEL} invocations of 1.5 s at the same time: ps shows {most} environments"


def timeout(server: Server) -> str:
    start = time.monotonic()
    answer = server.invoke("slow", b'{"seconds": 30}')
    late_ms = (time.monotonic() - start - SLOW_TIMEOUT_S) * 1000
    said = json.loads(answer.payload)
    expect("timed out" in said.get("errorMessage", ""), f"it answered {said}")
    expect(late_ms < PROMISE_MS, f"answered {late_ms:.0f} ms after the deadline")
    what = said["errorMessage"].partition("Error: ")[2]
    return f"slow is killed: “{escape(what)}”, answered {late_ms:.1f} ms after the deadline"


def out_of_memory(server: Server) -> str:
    answer = server.invoke("memory-hog", b'{"megabytes": 256}')
    said = json.loads(answer.payload)
    expect(bool(answer.function_error), f"it answered {said}")
    expect("OutOfMemory" in report(answer), f"not told as such: {report(answer) or said}")
    used, size = measured(answer, "Max Memory Used"), measured(answer, "Memory Size")
    return f"memory-hog wants 256 MB: killed at {used} of {size} ({escape(said['errorType'])})"


def bash(server: Server) -> str:
    answer, _ = call(server, "bash-bootstrap", {"from": "demo"})
    expect(answer["echo"] == {"from": "demo"}, f"it answered {answer}")
    return f"bash-bootstrap, a Runtime API client in bash {answer['bash']}, echoes the event"


def node(server: Server) -> str:
    answer, _ = call(server, "node-hello", {"name": "Node"})
    expect(answer["greeting"] == "Hello, Node!", f"it answered {answer}")
    return f"node-hello answers “{answer['greeting']}” from Node.js {answer['node']}"


def timelapse(server: Server) -> str:
    call(server, "timelapse", {"generate": 3})
    answer, _ = call(server, "timelapse", {"generate": 3})
    got = (answer["frames"], answer["chunks"], answer["waiting"])
    expect(got == (6, 1, 2), f"it answered {answer}")
    return "timelapse, 3 frames twice: 1 chunk of 4 flushed, 2 frames wait in its memory"


def package(answer: str) -> bytes:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("index.py", f"def handler(event, context): return {answer!r}\n")
    return zipped.getvalue()


def aws(server: Server) -> Any:
    """AWS's own client: botocore, under boto3 and the AWS CLI."""
    import botocore.session

    return botocore.session.Session().create_client(
        "lambda",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id="demo",
        aws_secret_access_key="demo",
    )


def lambda_api(server: Server) -> str:
    client = aws(server)
    start = time.monotonic()
    client.create_function(
        FunctionName="greeter",
        Runtime=runtime_of(server, "hello"),
        Handler="index.handler",
        Role="arn:aws:iam::123456789012:role/demo",
        Code={"ZipFile": package("blue")},
    )
    settled(client)
    took_ms = (time.monotonic() - start) * 1000
    said = client.invoke(FunctionName="greeter")["Payload"].read()
    expect(said == b'"blue"', f"it answered {said!r}")
    first = client.publish_version(FunctionName="greeter")["Version"]
    client.update_function_code(FunctionName="greeter", ZipFile=package("green"))
    settled(client)
    second = client.publish_version(FunctionName="greeter")["Version"]
    expect((first, second) == ("1", "2"), f"its versions are {first} and {second}")
    return f"botocore creates a function ({took_ms:.0f} ms), invokes, publishes, updates it"


def runtime_of(server: Server, name: str) -> str:
    return str(next(row["runtime"] for row in server.functions() if row["name"] == name))


def settled(client: Any) -> None:
    for waiter in ("function_active_v2", "function_updated_v2"):
        client.get_waiter(waiter).wait(
            FunctionName="greeter", WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
        )


def alias(server: Server) -> str:
    client = aws(server)
    weights = {"AdditionalVersionWeights": {"2": 0.25}}
    client.create_alias(
        FunctionName="greeter", Name="live", FunctionVersion="1", RoutingConfig=weights
    )
    answers = [client.invoke(FunctionName="greeter", Qualifier="live") for _ in range(ALIASED)]
    count = sum(answer["ExecutedVersion"] == "2" for answer in answers)
    # 0.25 of 200 is 50; beyond these bounds once in a million runs.
    expect(20 <= count <= 85, f"{count} of {ALIASED} went to version 2")
    client.delete_function(FunctionName="greeter")
    return f"live = version 1, a quarter to version 2: {count} of {ALIASED} went there; deleted"


def eviction(server: Server) -> str:
    def left() -> list[str]:
        names = [row["function"] for row in server.environments()]
        return [name for name in names if name != KEEPS_LONGER]

    before = len(left())
    end = time.monotonic() + IDLE_S + 8
    while (names := left()) and time.monotonic() < end:
        time.sleep(0.05)
    expect(not names, f"still there: {', '.join(names)}")
    kept = live(server, KEEPS_LONGER)
    return (
        f"{before} environments idle for {IDLE_S:g} s are gone, "
        f"{kept} with a longer idle_timeout of its own stays"
    )


def stop(tour: Tour, child: subprocess.Popen[str]) -> None:
    def clean() -> str:
        offspring = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGTERM)
        try:
            code = child.wait(timeout=15)
        except subprocess.TimeoutExpired as exc:
            raise Misbehaved("it did not stop within 15 s") from exc
        expect(code == 0, f"its exit code is {code}")
        alive = [str(process.pid) for process in offspring if process.is_running()]
        expect(not alive, f"processes are left: {' '.join(alive)}")
        groups = left_groups(child.pid)
        expect(not groups, f"cgroups are left: {' '.join(groups)}")
        return "SIGTERM: exit code 0; no process and no cgroup is left"

    tour.step("clean stop", clean)


def left_groups(pid: int) -> list[str]:
    found = []
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{top}/{name}" for name in names if name.startswith(f"lambox-{pid}-")]
    return found


if __name__ == "__main__":
    sys.exit(main())
