"""Accepted events and a server that is killed: each is told of as a success or as a failure, whenever it is killed.

Function `work` fails on every third event. What succeeds goes on to function `audit`, and from there to a queue
of SQS's; what fails goes to another queue, and as a dead letter to an HTTP endpoint.
"""

from __future__ import annotations

import http.server
import itertools
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.aws import Aws, Queue
from tests.system.conftest import Functions, Server

WORK = """
def handler(event, context):
    if event % 3 == 0:
        raise ValueError(f"no {event}")
    return event
"""
AUDIT = "def handler(event, context):\n    return event['requestPayload']\n"
RETRY_S = "0.2"
CALLERS = 8


class Letters(http.server.BaseHTTPRequestHandler):
    """Takes dead letters."""

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if len(body) < size:  # whoever sent it was killed
            return
        self.server.letters.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def letterbox() -> Iterator[tuple[str, list[int]]]:
    """(its address, what came)"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Letters)
    letters: list[int] = []
    server.letters = letters  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dead", letters
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Figures:
    accepted: int
    kills: int
    succeeded: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    dead: Counter[int] = field(default_factory=Counter)
    taken_up: int = 0
    """Events that a later server found, all kills together."""
    after_s: float = 0.0
    """From the last start to the last one told of."""

    @property
    def lost(self) -> set[int]:
        return {
            number
            for number in range(self.accepted)
            if not (
                self.failed[number] and self.dead[number]
                if number % 3 == 0
                else self.succeeded[number]
            )
        }

    def __str__(self) -> str:
        told = (self.succeeded, self.failed, self.dead)
        twice = sum(1 for each in told for count in each.values() if count > 1)
        return (
            f"{self.accepted} accepted, {self.kills} x kill -9, {self.taken_up} taken up by the next server: "
            f"{len(self.succeeded)} told as successes (through a second function, SQS), "
            f"{len(self.failed)} as failures (SQS), {len(self.dead)} as dead letters (HTTP), "
            f"{twice} told more than once, {len(self.lost)} lost; "
            f"the last {self.after_s:.1f} s after the last start"
        )


class Crash:
    """One run. `begin` starts a server on the same folders as the one before."""

    def __init__(self, aws: Aws, functions: Functions, begin: Callable[..., Server]) -> None:
        self._aws = aws
        self._functions = functions
        self._begin = begin
        self._good: Queue = aws.queue(VisibilityTimeout="600")
        self._bad: Queue = aws.queue(VisibilityTimeout="600")

    def run(self, count: int, kill_after: Iterable[float]) -> Figures:
        """`kill_after`: of each server but the last, how long it lives once it has been sent its first event."""
        with letterbox() as (address, letters):
            self._write(address)
            numbers = iter(range(count))
            kills = 0
            for seconds in kill_after:
                server = self._server()
                numbers = self._send(server, numbers, seconds)
                server.stop(signal.SIGKILL)
                kills += 1
            server = self._server()
            began = time.monotonic()
            assert not list(self._send(server, numbers, None))
            figures = Figures(count, kills)
            self._collect(figures, letters, began + 120)
            figures.after_s = time.monotonic() - began
            found = re.findall(r"(\d+) accepted events from before", server.log.read_text())
            figures.taken_up = sum(map(int, found))
        return figures

    def _write(self, address: str) -> None:
        self._functions.add(
            "work",
            WORK,
            f"""
            maximum_retry_attempts = 1
            on_success = "audit"
            on_failure = "{self._bad.arn}"
            dead_letter = "{address}"
            """,
        )
        self._functions.add("audit", AUDIT, f'on_success = "{self._good.arn}"')

    def _server(self) -> Server:
        return self._begin(AWS_ENDPOINT_URL=self._aws.url, LAMBOX_EVENT_RETRY_S=RETRY_S)

    def _send(self, server: Server, numbers: Iterator[int], seconds: float | None) -> Iterator[int]:
        """Returns those that were not accepted. What was sent and has no answer may be in, too: it is sent again."""
        client, lock = server.client(), threading.Lock()
        left: list[int] = []
        end = None if seconds is None else time.monotonic() + seconds
        late = threading.Event()

        def call() -> None:
            while not late.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    client.invoke(
                        FunctionName="work", InvocationType="Event", Payload=str(number).encode()
                    )
                except (BotoCoreError, ClientError):
                    left.append(number)
                    return

        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(call) for _ in range(CALLERS)]
            if end is not None:
                # In the middle of whatever there is by then: callers, attempts, hand-overs.
                time.sleep(max(0.0, end - time.monotonic()))
                server.process.kill()
                late.set()
            for one in calls:
                one.result()
        return itertools.chain(left, numbers)

    def _collect(self, figures: Figures, letters: list[int], until: float) -> None:
        while figures.lost and time.monotonic() < until:
            for queue, told in ((self._good, figures.succeeded), (self._bad, figures.failed)):
                for body in queue.bodies():
                    told[_number(body)] += 1
            figures.dead = Counter(letters)
            time.sleep(0.02)


def _number(record: dict[str, Any]) -> int:
    payload = record["requestPayload"]
    return int(payload["requestPayload"] if isinstance(payload, dict) else payload)
