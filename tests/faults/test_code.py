"""Faults of a function's folder: deleted, replaced, cut short, half written, closed off, in use or not."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.system.conftest import Functions, Server, serving

pytestmark = pytest.mark.system
CODE = """\
import time
VERSION = "old"
def handler(event, context):
    if event:
        print("begun in", context.function_name)
    time.sleep(event)
    return VERSION
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("code")
    folder.chmod(0o755)
    with serving(Functions(folder / "functions"), folder / "state", folder / "log") as server:
        yield server


def put(folder: Path, version: str, toml: str = "timeout = 20\n") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "function.toml").write_text(toml)
    (folder / "handler.py").write_text(CODE.replace("old", version))


def said(server: Server, name: str) -> Any:
    """What an invocation gives: its payload, or the code and message it is refused with."""
    try:
        return server.invoke(name, 0)["Payload"]
    except ClientError as exc:
        return f"{exc.response['Error']['Code']}: {exc.response['Error']['Message']}"


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    put(folder.parent / ".fresh", "new")
    folder.rename(folder.parent / f".old-{folder.name}")
    (folder.parent / ".fresh").rename(folder)


def write_anew(folder: Path) -> None:
    put(folder, "new")


def cut_description(folder: Path) -> None:
    (folder / "function.toml").write_text("timeout = 20\n[environ")


def empty_code(folder: Path) -> None:
    os.truncate(folder / "handler.py", 0)


def half_code(folder: Path) -> None:
    os.truncate(folder / "handler.py", CODE.index("sleep(") + 6)


def close_off(folder: Path) -> None:
    (folder / "handler.py").chmod(0o600)


def lose_code(folder: Path) -> None:
    (folder / "handler.py").unlink()


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (delete, "ResourceNotFoundException: Function not found"),
    (replace, "new"),
    (write_anew, "new"),
    (cut_description, "ResourceConflictException: .*function.toml: not valid TOML"),
    (empty_code, "Runtime.HandlerNotFound"),
    (half_code, "Runtime.UserCodeSyntaxError"),
    (close_off, "ResourceConflictException: .*handler.py: cannot be read.*chmod"),
    (lose_code, "ResourceConflictException: .*"),
]


@pytest.mark.parametrize(
    ("change", "then"), CHANGES, ids=[change.__name__ for change, _ in CHANGES]
)
def test_a_folder_changed_while_in_use_and_while_idle(
    server: Server, change: Callable[[Path], None], then: str
) -> None:
    """What runs ends with the code it has, even if that is deleted; the next gets the new code or a clear error."""
    name = change.__name__.replace("_", "-")
    folder = server.functions.folder / name
    put(folder, "old")
    assert said(server, name) == "old"  # leaves an idle environment too
    answers: list[Any] = []
    running = threading.Thread(
        target=lambda: answers.append(server.invoke(name, 0.7)["Payload"]), daemon=True
    )
    running.start()
    server.wait_log(f"begun in {name}")
    change(folder)
    found = said(server, name)
    assert re.match(then, found if isinstance(found, str) else found["errorType"]), found
    running.join(20)
    assert answers == ["old"]
    # Whole again, it works at once.
    if folder.exists():
        shutil.rmtree(folder)
    put(folder, "mended")
    assert said(server, name) == "mended"


def test_a_link_that_is_swapped_is_followed_at_the_next_invocation(server: Server) -> None:
    """As deployments do it: `current` -> v1, then -> v2 by one rename."""
    for version in ("v1", "v2"):
        put(server.functions.folder / f".{version}", version)
    link = server.functions.folder / "linked"
    link.symlink_to(".v1")
    assert said(server, "linked") == "v1"
    fresh = server.functions.folder / ".link"
    for version in ("v2", "v1", "v2"):
        fresh.symlink_to(f".{version}")
        fresh.rename(link)
        assert said(server, "linked") == version
    shutil.rmtree(server.functions.folder / ".v2")
    assert said(server, "linked").startswith("ResourceNotFound")


def test_code_that_is_written_slowly_is_never_run_by_halves_for_long(server: Server) -> None:
    """Each invocation sees what is there when it comes: errors while it is written, the whole at its end."""
    folder = server.functions.folder / "slowly"
    put(folder, "old")
    assert said(server, "slowly") == "old"
    code = CODE.replace("old", "whole").encode()
    with (folder / "handler.py").open("wb", buffering=0) as file:
        for at in range(0, len(code), 40):
            file.write(code[at : at + 40])
            answer = said(server, "slowly")
            assert answer in ("whole", None) or answer["errorType"]
    assert said(server, "slowly") == "whole"
