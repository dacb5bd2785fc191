"""What several tests of faults share."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.system.conftest import Server

ECHO = "def handler(event, context):\n    return event\n"
SLOW = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'done'\n"


class Call(threading.Thread):
    """An invocation in the background: `answer` is boto3's, or the exception."""

    def __init__(self, server: Server, name: str, event: Any = None, **how: Any) -> None:
        super().__init__(daemon=True)
        self.answer: Any = None
        self.took_s = 0.0
        self._call = lambda: server.invoke(name, event, **how)
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self.answer = self._call()
        except Exception as exc:
            self.answer = exc
        self.took_s = time.monotonic() - began

    def result(self, within_s: float = 30.0) -> Any:
        """Raises AssertionError when it has no end within that time: that is what may never be."""
        self.join(within_s)
        assert not self.is_alive(), "an invocation without an end"
        return self.answer


def refused(server: Server, name: str, event: Any = None, **how: Any) -> tuple[str, float]:
    """The code and message of what an invocation is refused with, and how long that took."""
    began = time.monotonic()
    with pytest.raises(ClientError) as caught:
        server.invoke(name, event, **how)
    error = caught.value.response["Error"]
    return f"{error['Code']}: {error['Message']}", time.monotonic() - began


def works(server: Server, name: str, event: Any = None) -> bool:
    try:
        return "FunctionError" not in server.invoke(name, event)
    except ClientError:
        return False


def busy(server: Server, name: str) -> bool:
    return any(row["state"] == "busy" for row in server.environments(name))
