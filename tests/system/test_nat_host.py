"""What a router takes of the host and gives back: interfaces, rules, forwarding, addresses, name service."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import trio

from sandbox.confine.network import links, rules
from sandbox.confine.network import nftables as nft
from sandbox.confine.network.netlink import NETLINK_NETFILTER, Netlink
from sandbox.confine.network.router import open_router, try_out
from sandbox.confine.spec import ConfineError, IsolationUnavailable
from tests.system.confine_fixtures import confined
from tests.system.internet import ANSWER, HOST, INTERNET, NAME_SERVER, Namespace, World, world
from tests.system.nat_fixtures import BUILT, asked, named, root

pytestmark = BUILT
FORWARDING = Path("/proc/sys/net/ipv4/conf/eth0/forwarding")


@pytest.fixture
def earth(tmp_path: Path) -> Iterator[World]:
    """A host of this test's own, which the test's thread is on."""
    with world() as made, made.entered(), named(tmp_path, NAME_SERVER):
        yield made


def state(host: Namespace) -> dict[str, object]:
    """All that a router could leave behind."""

    def look() -> dict[str, object]:
        with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
            tables = nft.tables(netlink)
        return {
            "interfaces": sorted(one.name for one in links.interfaces(host.route)),
            "routes": sorted(links.routes(host.route)),
            "tables": tables,
            "forwarding": FORWARDING.read_text(),
        }

    return host.do(look)


def shell(host: Namespace, script: str) -> str:
    """nft(8) or ip(8), on the host."""
    made = host.do(
        lambda: subprocess.run(script, shell=True, capture_output=True, text=True, check=True)
    )
    return made.stdout


async def test_everything_is_given_back(earth: World) -> None:
    before = state(earth.host)
    async with open_router() as router:
        during = state(earth.host)
        assert "lambox0" in during["interfaces"]  # type: ignore[operator]
        assert (during["forwarding"], router.made_forward) == ("1\n", ("eth0",))
    assert state(earth.host) == before
    assert before["forwarding"] == "0\n"


async def test_a_host_that_forwards_is_left_as_it_is(earth: World) -> None:
    earth.host.do(lambda: FORWARDING.write_text("1"))
    before = state(earth.host)
    async with open_router() as router:
        assert router.made_forward == ()
        assert len(state(earth.host)["tables"]) == 1  # type: ignore[arg-type]
    assert state(earth.host) == before


async def test_forwarding_that_somebody_else_needs_by_then_stays(earth: World) -> None:
    async with open_router():
        earth.host.do(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    assert state(earth.host)["forwarding"] == "1\n"


async def test_the_host_does_not_become_a_router_for_others(earth: World) -> None:
    """From the outside to a third network of the host, which only forwarding could reach."""
    third = Namespace()
    try:
        earth.attach(third, "lan0", "192.0.2.1", "192.0.2.2")
        earth.serve(third, "192.0.2.2", 80)

        def knock() -> str:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("192.0.2.2", 80), 0.4) as s,
            ):
                return s.recv(100).decode()
            return "no"

        async with open_router():
            assert state(earth.host)["forwarding"] == "1\n"
            assert earth.internet.do(knock) == "no"
            shell(earth.host, f"nft delete table inet {guard_table(earth.host)}")
            assert earth.internet.do(knock) == ANSWER.decode()  # so it was the guard
    finally:
        third.close()


def guard_table(host: Namespace) -> str:
    return next(name for name in state(host)["tables"] if name.endswith("guard"))  # type: ignore[attr-defined]


async def test_two_servers_share_a_host(earth: World) -> None:
    """Interfaces, addresses and forwarding: the one that stays goes on when the other one goes."""
    before = state(earth.host)
    async with open_router() as second:
        async with open_router() as first:
            assert first.plan.network != second.plan.network
        assert state(earth.host)["forwarding"] == "1\n"
        async with confined(None, root(second), router=second, network="nat") as box:
            assert await asked(box, f'say(reach("{INTERNET}", 80))') == ANSWER.decode()
    assert state(earth.host) == before


SERVER = """
    import os, sys, trio
    from sandbox.confine.network.router import open_router
    async def main():
        async with open_router() as router:
            os.write(1, f"{router.plan.network}\\n".encode())
            await trio.sleep_forever()
    trio.run(main)
"""


@contextlib.contextmanager
def another() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A router in a process of its own, and its addresses."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_after_a_sigkill_the_next_start_sweeps(earth: World) -> None:
    before = state(earth.host)
    with another() as (process, network):
        assert state(earth.host)["forwarding"] == "1\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with trio.fail_after(10):  # the kernel takes namespaces down in its own time
            while "lambox0" in state(earth.host)["interfaces"]:  # type: ignore[operator]  # noqa: ASYNC110
                await trio.sleep(0.01)
        left = state(earth.host)
        # Only the guard, which is what makes the forwarding that is left harmless.
        assert left["interfaces"] == before["interfaces"]
        assert [name[-5:] for name in left["tables"]] == ["guard"]  # type: ignore[attr-defined]
        assert left["forwarding"] == "1\n"
        async with open_router() as router:
            assert str(router.plan.network) == network
            assert router.made_forward == ("eth0",)
    assert state(earth.host) == before


async def test_a_living_servers_tables_are_not_swept(earth: World) -> None:
    with another() as (_, network):
        theirs = state(earth.host)["tables"]
        async with open_router() as router:
            assert str(router.plan.network) != network
        assert state(earth.host)["tables"] == theirs
        assert state(earth.host)["forwarding"] == "1\n"


async def test_ranges_that_the_host_has_routes_to_are_not_used(earth: World) -> None:
    shell(earth.host, f"ip route add 10.0.0.0/8 via {INTERNET}")
    async with open_router() as router:
        assert router.plan.network == IPv4Network("172.27.0.0/20")
    with pytest.raises(IsolationUnavailable, match=r"cover all of 10\.1\.0\.0/16") as caught:
        async with open_router(IPv4Network("10.1.0.0/16")):
            pass
    assert "--nat-range" in caught.value.remedy


async def test_a_small_range_is_used_up_and_given_back(earth: World) -> None:
    async with open_router(IPv4Network("10.77.0.0/28")) as router:
        boxes = len(router.plan.sandboxes)
        fds = [os.pidfd_open(os.getpid()) for _ in range(1)]
        async with contextlib.AsyncExitStack() as stack:
            for number in range(boxes):
                how = {"name": f"small-{number}", "network": "nat"}
                box = await stack.enter_async_context(
                    confined(None, root(router), router=router, **how)
                )
            assert await asked(box, f'say(reach("{INTERNET}", 80))') == ANSWER.decode()
            with pytest.raises(ConfineError, match="wider nat_range"):
                await router.join(fds[0])
        for fd in fds:
            os.close(fd)
        # The last one's address is the next one's to come: it works for that one too.
        for number in range(boxes + 1):
            async with confined(None, root(router), router=router, network="nat") as box:
                assert await asked(box, f'say(reach("{INTERNET}", 80))') == ANSWER.decode(), number


async def test_without_a_default_route_it_says_so(earth: World) -> None:
    before = state(earth.host)
    shell(earth.host, "ip route del default")
    with pytest.raises(IsolationUnavailable, match="no default route"):
        async with open_router():
            pass
    shell(earth.host, f"ip route add default via {INTERNET} dev eth0 proto static")
    assert state(earth.host) == before


MEND = "modprobe -a nf_tables nft_masq nft_fib_inet nft_connlimit veth"
NOBODYS_FAMILY = 99
WITHOUT_NETFILTER = """
    import pyseccomp, socket
    from sandbox.confine.network.router import try_out
    from sandbox.confine.spec import IsolationUnavailable
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.add_rule(pyseccomp.ERRNO(93), "socket", pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_NETLINK),
                   pyseccomp.Arg(2, pyseccomp.EQ, 12))
    rules.load()
    try:
        try_out()
    except IsolationUnavailable as exc:
        print(exc)
"""


def test_a_kernel_without_tables_of_our_family_is_named_with_its_mend(
    earth: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that no kernel has is answered as ours is by one that was built without it (nf_tables_newtable)."""
    before = state(earth.host)
    monkeypatch.setattr(nft._header, "__defaults__", (NOBODYS_FAMILY, 0))
    with pytest.raises(IsolationUnavailable, match=r"nftables' table .* not supported") as no:
        try_out()
    monkeypatch.undo()
    assert no.value.remedy == MEND
    assert state(earth.host) == before


def test_a_kernel_without_netfilter_is_named_with_its_mend(earth: World) -> None:
    before = state(earth.host)
    code = textwrap.dedent(WITHOUT_NETFILTER)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "opening netlink for nftables: Protocol not supported" in done.stdout
    assert f"Hint: {MEND}" in done.stdout
    assert state(earth.host) == before


DOCKER = """
    nft add table ip filter
    nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'
"""


async def test_another_firewall_that_drops_what_is_forwarded_is_noticed(earth: World) -> None:
    """As Docker leaves a host. With the two rules that are proposed it works."""
    shell(earth.host, DOCKER)
    before = state(earth.host)
    with pytest.raises(IsolationUnavailable, match="another firewall") as caught:
        try_out()
    assert "iptables -I FORWARD -i lambox+ -j ACCEPT" in caught.value.remedy
    assert state(earth.host) == before
    shell(earth.host, "nft insert rule ip filter FORWARD iifname 'lambox*' accept")
    shell(
        earth.host,
        "nft insert rule ip filter FORWARD oifname 'lambox*' ct state established,related accept",
    )
    async with (
        open_router() as router,
        confined(None, root(router), router=router, network="nat") as box,
    ):
        assert await asked(box, f'say(reach("{INTERNET}", 80))') == ANSWER.decode()


async def test_what_the_host_publishes_is_not_reached_by_its_address(earth: World) -> None:
    """As Docker does it: destinations on the host are rewritten before anybody asks whose they are."""
    third = Namespace()
    try:
        earth.attach(third, "docker0", "192.0.2.1", "192.0.2.2")
        earth.serve(third, "192.0.2.2", 80)
        shell(
            earth.host,
            """
            nft add table ip nat
            nft add chain ip nat PREROUTING '{ type nat hook prerouting priority -100; }'
            nft add rule ip nat PREROUTING fib daddr type local tcp dport 8080 dnat to 192.0.2.2:80
            echo 1 > /proc/sys/net/ipv4/ip_forward
            """,
        )

        def published() -> str:
            with socket.create_connection((HOST, 8080), 2) as s:
                return s.recv(100).decode()

        assert earth.internet.do(published) == ANSWER.decode()
        async with (
            open_router() as router,
            confined(None, root(router), router=router, network="nat") as box,
        ):
            found = await asked(box, f'say([reach("{HOST}", 8080), reach("192.0.2.2", 80)])')
        # By its own address it is one of the places that the host has a route to.
        assert found == ["ECONNREFUSED", ANSWER.decode()]
    finally:
        third.close()


async def test_all_sandboxes_together_fill_half_of_the_hosts_table_at_most(earth: World) -> None:
    """Two minutes of new connections at that rate; what one may begin is in test_nat_reach."""
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())  # noqa: ASYNC240
    async with open_router() as router:
        place = f"/proc/{os.getpid()}/fd/{router._namespace}"
        rules_ = shell(earth.host, f"nsenter --net={place} nft list chain inet lambox forward")
    assert f"ct state new limit rate over {most // 240}/second burst {most // 8}" in rules_


async def test_a_reload_of_the_hosts_firewall_opens_nothing(earth: World) -> None:
    """`nft flush ruleset` takes what is not owned; ours is."""
    earth.serve(earth.host, HOST, 8080)
    async with open_router() as router:
        shell(earth.host, "nft flush ruleset")
        assert any(name.endswith("lambox0") for name in state(earth.host)["tables"])  # type: ignore[attr-defined]
        async with confined(None, root(router), router=router, network="nat") as box:
            found = await asked(box, f'say([reach("{INTERNET}", 80), reach("{HOST}", 8080)])')
    assert found == [ANSWER.decode(), "ECONNREFUSED"]


async def test_names_follow_the_host_into_what_runs(earth: World, tmp_path: Path) -> None:
    etc = tmp_path / "resolv.conf"
    etc.write_text("nameserver 203.0.113.99\n")
    async with (
        open_router() as router,
        confined(None, root(router), router=router, network="nat") as box,
    ):
        assert await asked(box, "say(0); signal.pause()") == 0
        etc.write_text(f"nameserver {NAME_SERVER}\n")
        await router.thread.call(router.look)
        async with confined(None, root(router), name="b", router=router, network="nat") as fresh:
            assert (
                await asked(fresh, 'say(socket.gethostbyname("after.example"))') == "198.51.100.7"
            )
    assert earth.asked == ["after.example"]


@pytest.mark.parametrize("servers", [["127.0.0.53"], [HOST], ["127.0.0.53", HOST]])
async def test_a_server_on_the_host_itself_is_relayed_to(
    earth: World, tmp_path: Path, servers: list[str]
) -> None:
    """systemd-resolved, dnsmasq: nothing else there becomes reachable."""
    for address in servers:
        earth.answer_names(earth.host, address)
    with named(tmp_path, *servers):
        async with (
            open_router() as router,
            confined(None, root(router), router=router, network="nat") as box,
        ):
            assert not router.resolvers.direct
            found = await asked(
                box,
                f"""
                say([socket.gethostbyname("local.example"), reach("{HOST}", 53),
                     reach("10.219.0.3", 53), reach("10.219.0.1", 54)])
                """,
            )
    assert found == ["198.51.100.7", "ECONNREFUSED", "EHOSTUNREACH", "EHOSTUNREACH"]
    assert earth.asked == ["local.example"]


async def test_the_relay_carries_long_answers_over_tcp(earth: World, tmp_path: Path) -> None:
    """And bounds what one sandbox may ask of it."""
    server = earth.host.listen("127.0.0.53", 53)
    with named(tmp_path, "127.0.0.53"), contextlib.closing(server):
        async with (
            open_router() as router,
            confined(None, root(router), router=router, network="nat") as box,
        ):
            await box.python(
                """
                with socket.create_connection(("10.219.0.1", 53), 5) as s:
                    s.sendall(b"question")
                    s.shutdown(socket.SHUT_WR)
                    got = b""
                    while data := s.recv(65536):
                        got += data
                say(len(got))
                """
            )
            server.setblocking(False)
            listening = trio.socket.from_stdlib_socket(server)
            connection, _ = await listening.accept()
            async with trio.SocketStream(connection) as stream:
                heard = b""
                async for data in stream:
                    heard += data
                await stream.send_all(bytes(60_000))
            assert heard == b"question"
            assert await box.heard() == 60_000


async def test_a_flood_of_questions_is_cut_before_the_relay(earth: World, tmp_path: Path) -> None:
    door = earth.host.bound("127.0.0.53", 53)
    door.setblocking(False)
    with named(tmp_path, "127.0.0.53"), contextlib.closing(door):
        async with (
            open_router() as router,
            confined(None, root(router), router=router, network="nat") as box,
        ):
            took = await asked(
                box,
                """
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                began = time.monotonic()
                for number in range(5000):
                    attempt(s.sendto, number.to_bytes(12, "big"), ("10.219.0.1", 53))
                say(time.monotonic() - began)
                """,
            )
            await trio.testing.wait_all_tasks_blocked(0.05)
            count = 0
            with contextlib.suppress(BlockingIOError):
                while door.recv(100):
                    count += 1
    assert 0 < count <= rules.ASKED_AT_ONCE + rules.ASKED_PER_SECOND * (took + 1)


async def test_packets_with_others_addresses_are_dropped(earth: World) -> None:
    """What a sandbox cannot send, as it lacks every capability: the filter holds all the same."""
    box = Namespace()
    holder = box.do(lambda: subprocess.Popen(["sleep", "1000"]))
    fd = os.pidfd_open(holder.pid)
    try:
        with earth.datagrams() as taken:
            async with open_router() as router:
                lease = await router.join(fd)

                def send(source: str) -> None:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                        sender.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
                        sender.bind((source, 0))
                        sender.sendto(source.encode(), (INTERNET, 9))

                own = str(lease.address)
                for source in (str(IPv4Address(own) + 1), "10.219.0.1", INTERNET, "8.8.8.8", own):
                    box.do(lambda source=source: send(source))  # type: ignore[misc]
    finally:
        holder.kill()
        holder.wait()
        os.close(fd)
        box.close()
    assert taken == [own.encode()]
