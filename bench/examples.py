"""Owns the functions that are measured: written into temp folders, as many copies as a measure needs."""

from __future__ import annotations

import shutil
from pathlib import Path

PYTHON = "def handler(event, context):\n    return {'hello': event}\n"
BOTO3 = "import boto3\n\n\n" + PYTHON
NODE = "export const handler = async (event) => ({ hello: event });\n"
ECHO = "def handler(event, context):\n    return event\n"
SLEEPER = "import time\n\n\ndef handler(event, context):\n    time.sleep(0.1)\n    return {'hello': event}\n"
# Calls its process by the function's name, so that it can be told from outside (`observe.trees`).
CALL_IT = """
import os

with open("/proc/self/comm", "w") as comm:
    comm.write(os.environ["AWS_LAMBDA_FUNCTION_NAME"])
"""
NAMED = CALL_IT + PYTHON
# A tree: a child and a grandchild that ignore SIGTERM, and a handler that does not return.
HANG = (
    CALL_IT
    + """
import signal, time

def stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()

if os.fork() == 0:
    os.fork()
    stay()

def handler(event, context):
    if event.get("hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    return {"hello": event}
"""
)
NODE_HELLO = '{"hello":{"n":1}}'
BASH_HELLO = '{"echo": {"n": 1}}'
BASH = r"""#!/bin/bash
api=$AWS_LAMBDA_RUNTIME_API
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
  request POST "$id/response" "{\"echo\": $body}"
done
"""
FILES = {
    "python": ("handler.py", PYTHON),
    "boto3": ("handler.py", BOTO3),
    "node": ("index.mjs", NODE),
    "bash": ("bootstrap", BASH),
    "echo": ("handler.py", ECHO),
    "sleeper": ("handler.py", SLEEPER),
    "hang": ("handler.py", HANG),
    "named": ("handler.py", NAMED),
}


def has_node() -> bool:
    return shutil.which("node") is not None


def write(folder: Path, kind: str, copies: int = 1, toml: str = "") -> Path:
    """`copies` functions KIND-0, KIND-1, ... in `folder`; sandboxes can read them. Returns `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    folder.chmod(0o755)
    name, text = FILES[kind]
    for number in range(copies):
        function = folder / f"{kind}-{number}"
        function.mkdir()
        (function / name).write_text(text)
        (function / name).chmod(0o755)
        if toml:
            (function / "function.toml").write_text(toml)
    return folder
