"""Netlink's encoding, which name servers are used, which addresses: all that needs no kernel."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambox.network import WayOut
from sandbox.confine import cgroup
from sandbox.confine.network import netlink, resolvers, rules, tapside
from sandbox.confine.network.router import RANGES, _shares
from sandbox.confine.spec import IsolationUnavailable
from sandbox.functiontoml import FunctionDefaults


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_as_they_were_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in pairs)
    assert list(netlink.attributes(data)) == pairs
    assert len(data) % 4 == 0


@given(st.binary(max_size=64))
def test_garbage_has_an_end(data: bytes) -> None:
    assert len(list(netlink.attributes(data))) <= len(data) / 4


def test_an_attribute_as_the_kernel_has_it() -> None:
    """netlink(7): length with the header, type, value, padding."""
    assert netlink.attribute(3, b"eth0\0") == struct.pack("=HH8s", 9, 3, b"eth0")
    assert netlink.nested(1, b"") == struct.pack("=HH", 4, 0x8001)


def write(folder: Path, etc: str | None, behind: str | None = None) -> tuple[Path, Path]:
    files = folder / "etc", folder / "behind"
    for file, text in zip(files, (etc, behind), strict=True):
        if text is not None:
            file.write_text(text)
    return files


OURS = IPv4Address("192.0.2.7")


@pytest.mark.parametrize(
    ("etc", "behind", "servers", "direct"),
    [
        ("nameserver 192.0.2.1\n", None, ["192.0.2.1"], True),
        ("# no\nsearch lan\nnameserver 192.0.2.1\nnameserver 192.0.2.2 \n", None,
         ["192.0.2.1", "192.0.2.2"], True),
        # resolv.conf(5) has three; two gateways stand for them.
        ("nameserver 1.1.1.1\nnameserver 1.0.0.1\nnameserver 8.8.8.8\n", None,
         ["1.1.1.1", "1.0.0.1"], True),
        # systemd-resolved: its own file says whom it asks.
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\n", ["192.0.2.1"], True),
        ("nameserver 127.0.0.53\n", None, ["127.0.0.53"], False),
        ("nameserver 127.0.0.53\n", "nameserver 127.0.0.1\n", ["127.0.0.1"], False),
        ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n", ["192.0.2.1"], True),
        (f"nameserver {OURS}\n", None, [str(OURS)], False),
        ("nameserver 169.254.169.254\n", None, ["169.254.169.254"], False),
        ("nameserver 2001:db8::1\n", None, ["2001:db8::1"], False),
        ("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", None, ["192.0.2.1", "127.0.0.1"], False),
        ("nameserver 0.0.0.0\n", None, ["0.0.0.0"], False),
        ("nameserver\nnameserver here\n", None, ["127.0.0.1"], False),
        (None, None, ["127.0.0.1"], False),
    ],
)  # fmt: skip
def test_name_servers_are_led_to_where_packets_can_be(
    tmp_path: Path, etc: str | None, behind: str | None, servers: list[str], direct: bool
) -> None:
    files = write(tmp_path, etc, behind)
    found = resolvers.find(lambda address: address == OURS, files)
    assert ([str(one) for one in found.servers], found.direct) == (servers, direct)
    assert [str(one) for one in found.led_to] == (servers if direct else [])


def test_a_share_is_a_whole_range_or_4096_addresses_of_it() -> None:
    assert _shares([IPv4Network("10.77.0.0/26")]) == [IPv4Network("10.77.0.0/26")]
    assert len(_shares(RANGES)) == 48
    (small,) = _shares([IPv4Network("10.77.0.0/26")])
    assert len(rules.Plan(small).sandboxes) == 55


@pytest.mark.parametrize(
    ("routes", "covered"),
    [
        ([], False),
        (["0.0.0.0/0"], False),
        (["10.0.0.0/8"], True),
        (["10.219.7.1/32"], True),
        (["10.220.0.0/16", "192.168.0.0/16"], False),
    ],
)
def test_a_default_route_covers_nothing(routes: list[str], covered: bool) -> None:
    share = IPv4Network("10.219.0.0/20")
    assert rules.overlaps(share, list(map(IPv4Network, routes))) is covered


def test_addresses_of_a_plan_are_all_different() -> None:
    plan = rules.Plan(IPv4Network("10.219.16.0/20"))
    own = {*plan.gateways, plan.host, plan.router}
    theirs = {plan.network[position] for position in plan.sandboxes}
    assert len(own) == 4
    assert not own & theirs
    assert {plan.network.network_address, plan.network.broadcast_address} & (own | theirs) == set()


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192",
     "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"],
)  # fmt: skip
def test_what_is_refused(address: str) -> None:
    assert any(IPv4Address(address) in network for network in rules.REFUSED)


def test_tables_carry_the_name_by_which_they_are_swept() -> None:
    for suffix in ("lambox0", "lambox99guard"):
        assert cgroup.OWN_FOLDER.match(f"{cgroup.own_name()}-{suffix}")
        assert not cgroup.is_orphaned(f"{cgroup.own_name()}-{suffix}")


def test_pasta_is_preferred_and_without_both_there_is_a_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IsolationUnavailable, match="neither pasta nor slirp4netns") as caught:
        tapside.find()
    assert caught.value.remedy == "apt-get install passt"
    for name in ("slirp4netns", "pasta"):
        (tmp_path / name).touch(mode=0o755)
        assert tapside.find() == tapside.Tool(str(tmp_path / name), name)


@pytest.mark.parametrize("name", ["pasta", "slirp4netns"])
def test_nothing_of_the_host_is_forwarded_by_who_speaks_for_functions(name: str) -> None:
    argv = tapside.Tool(f"/usr/bin/{name}", name).command(tapside.LINKS[0], "/ns")
    if name == "pasta":
        assert "--no-map-gw" in argv
        for option in ("-t", "-u", "-T", "-U"):
            assert argv[argv.index(option) + 1] == "none"
    else:
        assert {"--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"} < set(argv)
        assert not any(word.startswith("--api-socket") for word in argv)


@pytest.mark.parametrize(
    ("router", "problem", "said"),
    [
        (None, "no veth", "cannot be had on this host: no veth. Hint: modprobe veth"),
        (None, "", "no function asked for it when the server was started. Hint: restart it"),
    ],
)
def test_what_a_function_is_told_that_asks_in_vain(router: None, problem: str, said: str) -> None:
    remedy = "modprobe veth" if problem else ""
    found = WayOut(router, FunctionDefaults(network="none"), problem, remedy)
    assert found.unavailable == {"nat": said}
    assert found.resolv_conf == ""
