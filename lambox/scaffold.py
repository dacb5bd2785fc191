"""Owns the first files of a new function, per runtime family."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"[a-zA-Z0-9-_]{1,64}\Z")
"""AWS's FunctionName (SPEC 3.1)."""

EVENT = '{"name": "world"}\n'

TOML = """\
# Everything in here is optional: see docs/function-toml.md.
description = ""
{runtime}timeout = 15            # seconds
memory_size = 128       # MB
"""

PYTHON = '''\
"""What it does."""


def handler(event, context):
    print(f"{context.function_name} got {event}")
    return {"greeting": f"Hello, {event.get('name', 'world')}!"}
'''

NODE = """\
export const handler = async (event, context) => {
  console.log(`${context.functionName} got ${JSON.stringify(event)}`);
  return { greeting: `Hello, ${event.name ?? "world"}!` };
};
"""

BASH = """\
#!/bin/bash
# The Runtime API in bash and curl: take the next event, post the answer, again.
# Any executable named `bootstrap` will do, in any language.
set -euo pipefail
api=http://${AWS_LAMBDA_RUNTIME_API:?}/2018-06-01/runtime/invocation

while true; do
  headers=$(mktemp)
  event=$(curl -sS -D "$headers" "$api/next")
  id=$(tr -d '\\r' <"$headers" | sed -n 's/^lambda-runtime-aws-request-id: *//Ip')
  echo "got $event" >&2
  curl -sS -o /dev/null -d "{\\"echo\\": $event}" "$api/$id/response"
  rm -f "$headers"
done
"""


class CannotScaffold(Exception):
    """The name, the runtime or the folder stands against it."""


def family(runtime: str) -> str:
    """`python`, `nodejs` or `provided`. Raises CannotScaffold."""
    if re.fullmatch(r"python(3\.\d{1,2})?", runtime):
        return "python"
    if re.fullmatch(r"node(js)?(\d{1,2}\.x)?", runtime):
        return "nodejs"
    if re.fullmatch(r"provided(\.[a-z0-9]+)?", runtime):
        return "provided"
    raise CannotScaffold(
        f"runtime {runtime!r} must be python, python3.x, nodejs, nodejsN.x or provided"
    )


def make(folder: Path, name: str, runtime: str) -> list[Path]:
    """Write the files of a new function below `folder`; returns them. Raises CannotScaffold."""
    if not NAME.match(name):
        raise CannotScaffold(f"{name!r} must be 1 to 64 letters, digits, - or _")
    kind = family(runtime)
    exact = "" if runtime in ("python", "node", "nodejs") else runtime
    if runtime == "provided":
        exact = "provided.al2023"
    source, code = {
        "python": ("handler.py", PYTHON),
        "nodejs": ("index.mjs", NODE),
        "provided": ("bootstrap", BASH),
    }[kind]
    toml = TOML.format(runtime=f'runtime = "{exact}"\n' if exact else "")
    place = folder / name
    try:
        place.mkdir(parents=True)
    except FileExistsError as exc:
        raise CannotScaffold(f"{place} exists already") from exc
    files = {source: code, "event.json": EVENT, "function.toml": toml}
    for file, content in files.items():
        (place / file).write_text(content, encoding="utf-8")
    if kind == "provided":
        (place / source).chmod(0o755)
    return [place / file for file in files]
