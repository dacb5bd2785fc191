"""The table: every attempt, in every kind of sandbox, as root and as an ordinary user (`make escape`).

Exit status 1 if anything got out. `--only NAME` runs one variant on the prey of FOLDER and prints JSON: what
`tools/as-user` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from tests.system.escape.attempts import ATTEMPTS, expected
from tests.system.escape.prey import prey
from tests.system.escape.variants import VARIANTS, Results, unfiltered

TOP = Path(__file__).resolve().parents[3]
AS_USER = TOP / "tools/as-user"
UNFILTERED = "root: bwrap on demand, no seccomp"


def as_user(name: str, folder: Path, *options: str) -> Results:
    """One variant, run by an ordinary user. Raises CalledProcessError."""
    command = [str(AS_USER), *options, "--", sys.executable, "-m", "tests.system.escape"]
    done = subprocess.run(
        [*command, "--only", name, "--folder", str(folder)],
        stdout=subprocess.PIPE, cwd=TOP, env={**os.environ, "PYTHONPATH": str(TOP)}, check=True,
        timeout=120,
    )  # fmt: skip
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


def only(name: str, folder: Path) -> int:
    """A variant on prey that somebody else holds out, maybe as another user."""
    facts = json.loads((folder / "facts.json").read_text())
    os.environ["ESCAPE_SECRET"] = (folder / "host/secret").read_text()
    if os.geteuid() != 0:
        from sandbox.confine import userns

        userns.enter()
        # The function's folder is root's: what is to be tried is told in a copy of it.
        folder = _copy(folder)
    print(json.dumps(trio.run(partial(VARIANTS[name], folder, facts))))
    return 0


def _copy(folder: Path) -> Path:
    own = Path(tempfile.mkdtemp(prefix="escape-"))
    own.chmod(0o755)
    subprocess.run(["cp", "-r", f"{folder}/functions", str(own)], capture_output=True)
    return own


def main() -> int:
    parser = argparse.ArgumentParser(prog="make escape", description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--folder", type=Path)
    parser.add_argument(
        "--unfiltered", action="store_true", help="also without the system call filter"
    )
    options = parser.parse_args()
    if options.only:
        return only(options.only, options.folder)
    columns: dict[str, Results] = {}
    with tempfile.TemporaryDirectory(prefix="lambox-escape-") as name, prey(Path(name)) as facts:
        folder = Path(name)
        os.environ["ESCAPE_SECRET"] = (folder / "host/secret").read_text()
        (folder / "facts.json").write_text(json.dumps(facts))
        for variant, run in VARIANTS.items():
            columns[f"{'root' if os.geteuid() == 0 else 'user'}: {variant}"] = trio.run(
                partial(run, folder, facts)
            )
        if options.unfiltered:
            columns[UNFILTERED] = trio.run(partial(unfiltered, folder, facts))
        if os.geteuid() == 0 and AS_USER.exists():
            for variant in VARIANTS:
                columns[f"user: {variant}"] = as_user(variant, folder)
    return show(columns)


def show(columns: dict[str, Results]) -> int:
    """Equal answers are said once; what got out is said loudly."""
    wanted, out = expected(), 0
    for number, title in enumerate(columns, 1):
        print(f"  {number}  {title}")
    for boundary, attempts in ATTEMPTS.items():
        print(f"\n{boundary}")
        for name, *_ in attempts:
            key = f"{boundary}: {name}"
            answers = [results.get(key, "not tried") for results in columns.values()]
            escaped = [
                answer not in wanted[key]
                for title, answer in zip(columns, answers, strict=True)
                if title != UNFILTERED  # shown, not judged: it is no way in which anybody serves
            ]
            if len(set(answers)) == 1:
                said = answers[0]
            else:
                said = ", ".join(f"{n}: {answer}" for n, answer in enumerate(answers, 1))
            out += sum(escaped)
            known = "known" if "(not defended)" in name else "refused"
            print(f"  {'GOT OUT' if any(escaped) else known:7}  {name:58} {said}")
    print(f"\n{len(wanted)} attempts, {len(columns)} kinds of sandboxes, {out} got out")
    return 1 if out else 0


if __name__ == "__main__":
    sys.exit(main())
