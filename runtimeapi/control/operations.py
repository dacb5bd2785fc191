"""Owns which function answers which operation of the Lambda API.

What is in botocore's model and not in this table is answered with 501 (`face.py`); docs/api.md is made from both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from runtimeapi.control import functions, urls
from runtimeapi.control.control import Control
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output

Operation = Callable[[Control, Input], Awaitable[Output]]

OPERATIONS: dict[str, Operation] = {
    **functions.OPERATIONS,
    **urls.OPERATIONS,
}
