"""What the cells of networks say of what was found inside; that docs/hosts.md keeps what is not tried anew."""

from __future__ import annotations

import os
import runpy
import socket
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from lambox import matrix

HOSTS = os.stat("/proc/self/ns/net").st_ino
OWN = HOSTS + 1
HOST = "192.0.2.2"
METADATA = "169.254.169.254"


class Inside:
    """Answers as functions of each network would; what a test gives is that of the one asked about."""

    def __init__(self, kind: str, **found: Any) -> None:
        self._kind = kind
        self._found = {"interfaces": ["lo"], "namespace": OWN, "names": True, "reach": {}} | found
        self.asked: list[str] = []

    async def answer(self, name: str, do: str, **event: Any) -> Any:
        self.asked.append(f"{name} {do}")
        if name != f"net-{self._kind}":
            return self._found.get(f"{name} {do}", True)
        if do == "network":
            return {key: self._found[key] for key in ("interfaces", "namespace")}
        if do == "reach":
            said = {METADATA: "EHOSTUNREACH", HOST: "ECONNREFUSED"} | self._found["reach"]
            return [said[address] for address, _ in event["places"]]
        return self._found[do]


@pytest.fixture(autouse=True)
def one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listens = matrix.contextmanager(lambda: iter([[(HOST, 4711)]]))
    monkeypatch.setattr(matrix, "_listening", listens)


CELLS = {"none": matrix._none, "nat": matrix._nat, "host": matrix._hosts_own}
OUT = ["lo", "eth0"]
SAID: list[tuple[str, dict[str, Any], str]] = [
    ("none", {}, "yes"),
    ("none", {"interfaces": OUT}, "no: it has eth0"),
    # A host with loopback alone, as guests have it, looks the same from inside.
    ("none", {"namespace": HOSTS}, "no: it has the host's"),
    ("nat", {"interfaces": OUT}, f"yes, names answered, {METADATA} and the host itself refused"),
    ("nat", {}, "no: it has no interface"),
    ("nat", {"interfaces": OUT, "namespace": HOSTS}, "no: it has the host's"),
    (
        "nat",
        {"interfaces": OUT, "names": False},
        "no: names are answered on the host, and not inside",
    ),
    (
        "nat",
        {"interfaces": OUT, "names": False, "net-host names": False},
        f"yes, {METADATA} and the host itself refused; this host's name servers do not answer",
    ),
    *(
        (
            "nat",
            {"interfaces": OUT, "reach": {address: said}},
            f"no: {address} is not refused ({said})",
        )
        for address in (METADATA, HOST)
        for said in ("connected", "ETIMEDOUT")
    ),
    ("host", {"namespace": HOSTS, "interfaces": OUT}, "yes"),
    ("host", {"namespace": HOSTS}, "yes"),
    ("host", {}, "no: it has one of its own"),
    ("host", {"interfaces": OUT}, "no: it has one of its own"),
]


@pytest.mark.parametrize(("kind", "found", "cell"), SAID)
async def test_a_cell_of_a_network_is_what_was_found_there(
    kind: str, found: dict[str, Any], cell: str
) -> None:
    question: Callable[[matrix.Asker], Awaitable[str]] = CELLS[kind]
    inside = Inside(kind, **found)
    assert await question(cast("matrix.Asker", inside)) == cell
    assert f"net-{kind} network" in inside.asked


def handler() -> dict[str, Any]:
    """What runs inside, here."""
    names: dict[str, Any] = {}
    exec(textwrap.dedent(matrix.HANDLER), names)
    return names


def test_what_runs_inside_tells_networks_apart() -> None:
    said = handler()["handler"]({"do": "network"}, None)
    assert said["namespace"] == HOSTS
    assert said["interfaces"] == [name for _, name in socket.if_nameindex()]


def test_what_runs_inside_tells_connected_from_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        assert handler()["handler"]({"do": "reach", "places": [place]}, None) == ["connected"]
    assert handler()["handler"]({"do": "reach", "places": [place]}, None) == ["ECONNREFUSED"]


@pytest.mark.parametrize("answers", [True, False])
def test_what_runs_inside_tells_whether_names_are_answered(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """By one who says of the question that he refuses it: that is an answer too."""
    made = handler()

    class Asking:
        def __init__(self, *_: object) -> None:
            self.sent = b""

        def __enter__(self) -> Asking:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def settimeout(self, _: float) -> None:
            pass

        def connect(self, place: tuple[str, int]) -> None:
            assert place == ("192.0.2.53", 53)

        def send(self, data: bytes) -> None:
            self.sent = data

        def recv(self, _: int) -> bytes:
            if not answers:
                raise TimeoutError
            return self.sent[:2] + b"\x81\x85" + self.sent[4:]

    monkeypatch.setattr(socket, "socket", Asking)
    made["open"] = lambda _: ["# nothing\n", "nameserver 192.0.2.53\n"]
    assert made["handler"]({"do": "names"}, None) is answers


TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOP / "tools/host-matrix"))


def test_columns_that_are_not_tried_anew_are_kept_as_the_page_has_them(
    tool: dict[str, Any],
) -> None:
    columns = tool["kept"]()
    assert tool["page"](columns) == (TOP / "docs/hosts.md").read_text()
    readme = (TOP / "README.md").read_text()
    assert tool["with_summary"](readme, columns) == readme


def test_the_page_has_every_kind_of_host(tool: dict[str, Any]) -> None:
    assert set(tool["kept"]()) == {host[0] for group in tool["GROUPS"].values() for host in group}


def test_each_answer_about_the_way_out_has_a_host(tool: dict[str, Any]) -> None:
    """One that can, as root and as a user; and each thing that may be missing, with its mend."""
    columns = tool["kept"]()
    said = {name: found.get('`network = "nat"`', "") for name, found in columns.items()}
    for name in ("root, hybrid cgroups", "user, /dev/net/tun open"):
        assert said[name].startswith("yes, names answered"), name
        assert said[name].endswith("refused"), name
    for name, mend in {
        "root, cgroup v2": "ip route add default",
        "root, v2, no nftables": "modprobe -a nf_tables",
        "user, delegated cgroup, uids": "chmod 666 /dev/net/tun",
        "user, no pasta": "apt-get install passt",
    }.items():
        assert said[name].startswith("no: "), name
        assert f"Hint: {mend}" in said[name], name
