"""Layers and packages with real environments: what functions see of them, in every kind of sandbox."""

from __future__ import annotations

import io
import os
import signal
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sandbox.confine import privilege
from tests.system.conftest import Server, Start
from tests.system.test_lambda_api import ROLE, wait
from tests.system.test_rootless import ONLY_ROOT, UID, place, server_process
from tests.system.test_rootless import serving as serving_as_user
from tests.waiting import until

__all__ = ["place"]

pytestmark = pytest.mark.system

LOOK = """
import os, sys
sys.path.insert(0, "/opt/python")
def handler(event, context):
    import words
    try:
        open("/opt/python/words.py", "a")
        written = True
    except OSError:
        written = False
    return {"word": words.WORD, "opt": sorted(os.listdir("/opt")), "only": words.only(), "written": written,
            "ran": os.popen("/opt/bin/tool").read().strip()}
"""
BOOTSTRAP = """#!/bin/sh
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
id=$(curl -sS -D - -o /dev/null $api/next | sed -n 's/.*[Rr]equest-[Ii]d: *\\([^[:space:]]*\\).*/\\1/p')
curl -sS -d '"from a bootstrap"' $api/$id/response
"""


def zipped(files: dict[str, tuple[str, int]]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, (text, mode) in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(info, text)
    return written.getvalue()


def words(word: str, only: str) -> bytes:
    return zipped(
        {
            "python/words.py": (
                f"WORD = {word!r}\nimport {only}\ndef only(): return {only}.__name__\n",
                0o600,
            ),
            f"python/{only}.py": ("", 0o644),
            "bin/tool": (f"#!/bin/sh\necho {word}\n", 0o755),
            only: ("", 0o644),
        }
    )


def make(client: Any, name: str, layers: list[str]) -> None:
    client.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Handler="index.handler",
        Role=ROLE,
        Code={"ZipFile": zipped({"index.py": (LOOK, 0o644)})},
        Layers=layers,
        MemorySize=256,
        Timeout=20,
    )
    wait(client, name)


def publish(client: Any) -> list[str]:
    return [
        client.publish_layer_version(
            LayerName=name, Content={"ZipFile": words(name, f"only_{name}")}
        )["LayerVersionArn"]
        for name in ("first", "second")
    ]


def seen(word: str, *only: str) -> dict[str, Any]:
    return {
        "word": word,
        "opt": sorted(["bin", "python", *(f"only_{one}" for one in only)]),
        "only": f"only_{word}",
        "written": False,
        "ran": word,
    }


def test_a_function_sees_its_layers_in_order(start: Start) -> None:
    """Later ones over earlier ones; one alone; none of it can be written; the host's other users see nothing. What
    was deleted stays as long as a function has it or an environment runs on it, and no longer."""
    server = start(LAMBOX_FREEZE_DELAY_MS="0")
    client = server.client()
    arns = publish(client)
    make(client, "both", arns)
    assert server.invoke("both")["Payload"] == seen("second", "first", "second")
    make(client, "other-way", arns[::-1])
    assert server.invoke("other-way")["Payload"] == seen("first", "first", "second")
    make(client, "one", arns[:1])
    assert server.invoke("one")["Payload"] == seen("first", "first")
    for name in ("first", "second"):
        client.delete_layer_version(LayerName=name, VersionNumber=1)
    client.update_function_configuration(
        FunctionName="both", Environment={"Variables": {"AN": "ew"}}
    )
    wait(client, "both")
    assert server.invoke("both")["Payload"] == seen("second", "first", "second")
    code = server.functions.folder.parent / "state/code"
    assert stat.S_IMODE(code.stat().st_mode) == 0o700
    assert len(list(code.glob("trees/*"))) == 3
    for name in ("both", "other-way", "one"):
        client.delete_function(FunctionName=name)
    until(lambda: not list(code.glob("*/*")), 20)


def check_bootstrap(server: Server) -> None:
    """It stays executable."""
    client = server.client()
    client.create_function(
        FunctionName="own",
        Runtime="provided.al2023",
        Handler="none",
        Role=ROLE,
        Code={"ZipFile": zipped({"bootstrap": (BOOTSTRAP, 0o755)})},
        Timeout=20,
    )
    wait(client, "own")
    assert server.invoke("own")["Payload"] == "from a bootstrap"


def test_a_throwaway_state_goes_with_the_server(start: Start, tmp_path: Path) -> None:
    """And what a killed one left goes with the next. Without a zygote bwrap itself has to reach the code there."""
    home = Path(os.environ.get("TMPDIR", "/tmp"), f"lambox-memory-{privilege.host_uid()}")
    before = set(home.glob("*"))

    def with_a_function() -> Server:
        server = start(LAMBOX_STATE=":memory:", LAMBOX_ZYGOTE="false")
        make(server.client(), "f", publish(server.client()))
        assert server.invoke("f")["Payload"]["word"] == "second"
        return server

    killed = with_a_function()
    (left,) = set(home.glob("*")) - before
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    killed.stop(signal.SIGKILL)
    stopped = with_a_function()
    assert not left.exists()
    check_bootstrap(stopped)
    assert stopped.stop() == 0
    assert set(home.glob("*")) <= before
    assert not (tmp_path / ":memory:").exists()
    assert not Path(":memory:").exists()


@ONLY_ROOT
@pytest.mark.parametrize(
    ("options", "zygote"), [((), "false"), (("--one",), "true")], ids=["range", "one-uid"]
)
def test_an_ordinary_users_functions_have_layers(
    place: Path, options: tuple[str, ...], zygote: str
) -> None:
    """Whose environments are other uids of the host's, without a right to enter the store."""
    more = {"LAMBOX_ZYGOTE": zygote, "LAMBOX_STATE": ":memory:"}
    with serving_as_user(place, *options, **more) as server:
        arns = publish(server.client())
        make(server.client(), "both", arns)
        assert server.invoke("both")["Payload"] == seen("second", "first", "second")
        make(server.client(), "one", arns[:1])
        assert server.invoke("one")["Payload"] == seen("first", "first")
        process = server_process(server.process)
        home = process.environ()["TMPDIR"]
        (state,) = Path(f"/proc/{process.pid}/root{home}/lambox-memory-{UID}").iterdir()
        assert state.stat().st_uid == UID
