"""A state folder and a server that is killed: whenever it is, what is there is whole.

    python -m tests.state_crash FOLDER SEED      changes the state for ever; a line per change that is on disk

Every change is made of several: a package into the store, a record into the database, packages away.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from rootfs.codestore import CodeStore
from rootfs.runtimes import discover
from rootfs.trees import LayerStore
from sandbox.catalog import Catalog
from sandbox.functiontoml import FunctionDefaults
from sandbox.registry.database import open_database
from sandbox.registry.garbage import Garbage
from sandbox.registry.records import Code, LayerRecord, LayerVersionRecord
from sandbox.registry.registry import open_registry
from sandbox.registry.resolving import AllFunctions

LAYERS, FILES = 4, 12


def package(rng: random.Random) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for number in range(FILES):
            archive.writestr(f"d{number % 3}/{number}", rng.randbytes(rng.randrange(20_000)))
    return written.getvalue()


async def change(folder: Path, rng: random.Random) -> None:
    """For ever: publish a version over an old one, or take one away; the collector beside it."""
    code, layers = CodeStore(folder / "code"), LayerStore(folder / "layers")
    code.recover()
    (folder / "functions").mkdir(exist_ok=True)
    with Catalog(folder / "functions", discover(), layers=layers) as catalog:
        async with (
            open_database(folder) as database,
            open_registry(database, code.missing) as registry,
            trio.open_nursery() as nursery,
        ):
            functions = AllFunctions(
                catalog,
                registry,
                code=code,
                layers=layers,
                runtimes=discover(),
                defaults=FunctionDefaults(),
            )
            nursery.start_soon(Garbage(database, registry, functions, code, layers).run)
            while True:
                name = f"layer{rng.randrange(LAYERS)}"
                data = package(rng)
                with code.hold() as hold:
                    kept = await trio.to_thread.run_sync(hold.put, data)
                    async with registry.edit() as edit:
                        record = edit.layer(name) or LayerRecord(name=name)
                        number = record.next_version
                        version = LayerVersionRecord(
                            version=number,
                            code=Code(tree=kept.tree, sha256=kept.sha256, size=kept.size),
                            document={},
                            created="",
                        )
                        edit.put(
                            replace(
                                record, versions={str(number): version}, next_version=number + 1
                            )
                        )
                sys.stdout.write(f"{name} {number}\n")
                sys.stdout.flush()


@dataclass(frozen=True)
class Found:
    newest: dict[str, int]
    """Layer -> number of its version."""


async def look(folder: Path) -> Found:
    """Loads what is there. Raises AssertionError where it is not whole."""
    code = CodeStore(folder / "code")
    async with open_database(folder) as database, open_registry(database) as registry:
        assert registry.complete
        assert not database.damaged()
        for tree in code.trees.glob("*") if code.trees.is_dir() else ():
            # Nothing half made has a name, whether something refers to it or not.
            assert_whole(code, tree.name)
        newest = {}
        for record in registry.layers():
            (version,) = record.versions.values()
            assert_whole(code, version.code.tree)
            assert version.version == record.next_version - 1
            newest[record.name] = version.version
    return Found(newest)


def assert_whole(code: CodeStore, name: str) -> None:
    data = code.zip(name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == name
    tree = code.tree(name)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
        assert found == set(archive.namelist())
        for member in archive.namelist():
            assert (tree / member).read_bytes() == archive.read(member)


def kill_again_and_again(folder: Path, times: int, rng: random.Random) -> int:
    """Returns how many changes were told to be on disk; none of them may be lost."""
    told = 0
    promised: dict[str, int] = {}
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.state_crash", folder, str(rng.random())],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(
                rng.random() * 0.1
            )  # the kill is to come at any moment, not at a certain one
            process.send_signal(signal.SIGKILL)
            lines = [first, *process.stdout]
        for line in lines:
            if line.endswith("\n"):
                name, number = line.split()
                promised[name] = int(number)
                told += 1
        found = trio.run(look, folder)
        for name, number in promised.items():
            assert found.newest[name] >= number, f"{name} {number} was on disk"
        promised = dict(found.newest)
    return told


if __name__ == "__main__":
    os.umask(0o077)
    trio.run(change, Path(sys.argv[1]), random.Random(sys.argv[2]))
