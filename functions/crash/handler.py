"""Ends in the way the event asks for: each shows how lambox tells it from the facts.

{"mode": "exception"}             an answer with errorType, errorMessage and stackTrace
{"mode": "exit", "code": 3}       Runtime.ExitError, exit status 3
{"mode": "segfault"}              Runtime.ExitError, signal: segmentation fault
{"mode": "abort"}                 Runtime.ExitError, signal: aborted
{"mode": "ok"}                    no crash at all
"""

import ctypes
import os


class Deliberate(Exception):
    """The exception this function raises when asked for one."""


def handler(event, context):
    mode = event.get("mode", "exception")
    print(f"crashing by {mode}")
    if mode == "exception":
        raise Deliberate(event.get("message", "this is what the event asked for"))
    if mode == "exit":
        os._exit(int(event.get("code", 1)))
    if mode == "segfault":
        ctypes.string_at(0)
    if mode == "abort":
        os.abort()
    return {"mode": mode}
