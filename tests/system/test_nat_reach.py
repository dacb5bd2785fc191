"""Where code in a sandbox with a way out gets, and where it does not, however it asks."""

from __future__ import annotations

import socket

import pytest

from sandbox.confine.network import rules
from tests.system.internet import ANSWER, ANSWERED, HOST, INTERNET, METADATA, World
from tests.system.nat_fixtures import BUILT, asked, earth, on_host, routed

pytestmark = BUILT
__all__ = ["earth", "on_host"]
REFUSED = "EHOSTUNREACH"
ROUTER = "10.219.0.4"


async def test_outward_with_the_hosts_address(on_host: World, making: str) -> None:
    async with routed() as (box,):
        assert await asked(box, f'say(reach("{INTERNET}", 80))') == ANSWER.decode()
    assert on_host.seen == [(HOST, INTERNET)]


async def test_names_are_resolved_by_the_hosts_server(on_host: World) -> None:
    async with routed() as (box,):
        found = await asked(box, 'say(socket.gethostbyname("lambda.example"))')
    assert found == str(ANSWERED)
    assert on_host.asked == ["lambda.example"]


async def test_nothing_of_the_host_answers(on_host: World, making: str) -> None:
    """Not on its loopback, not on any of its addresses, not on those it has for lambox."""
    places = [(HOST, 8080), ("10.219.0.3", 8080), ("127.0.0.1", 8080)]
    for address in (HOST, "0.0.0.0"):
        port = 8080 if address == HOST else 8081
        on_host.serve(on_host.host, address, port)
        places += [(HOST, port), ("10.219.0.3", port), (ROUTER, port)]
    async with routed() as (box,):
        found = await asked(box, f"say([reach(*place) for place in {places}])")
    # Its own loopback is its own: nobody listens there. The host answers as if nobody did.
    assert dict(zip(places, found, strict=True)) == {
        place: REFUSED if place[0].startswith("10.") else "ECONNREFUSED" for place in places
    }
    assert on_host.seen == []


async def test_no_cloud_metadata(on_host: World) -> None:
    """The internet of these tests has servers there, and the host a route to them."""
    places = [(address, 80) for address in METADATA]
    mapped = [(f"::ffff:{address}", 80) for address in METADATA]
    async with routed() as (box,):
        found = await asked(
            box,
            f"say([[reach(*place) for place in {places}],"
            f" [reach(*place, socket.AF_INET6) for place in {mapped}]])",
        )
    assert found == [[REFUSED] * len(METADATA)] * 2
    assert on_host.seen == []


@pytest.mark.parametrize(
    "address", ["0.0.0.1", "127.0.0.2", "169.254.1.1", "192.0.0.8", "224.0.0.1", "240.0.0.1"]
)
async def test_no_address_that_is_nobodys(on_host: World, address: str) -> None:
    """By datagrams too, which have no handshake to fail."""
    code = f"""
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for place in ("{address}", "{INTERNET}"):
            attempt(s.sendto, place.encode(), (place, 9))
            attempt(s.sendto, place.encode(), (place, 9))
        say(reach("{INTERNET}", 80))
    """
    with on_host.datagrams() as taken:
        async with routed() as (box,):
            assert await asked(box, code) == ANSWER.decode()
    assert set(taken) == {INTERNET.encode()}


async def test_gateways_have_nothing_but_names(on_host: World) -> None:
    ports = [1, 22, 80, 9000, 9001]
    async with routed() as (box,):
        found = await asked(
            box,
            f'say([reach(f"10.219.0.{{n}}", port) for n in (1, 2) for port in {ports}])',
        )
    assert found == [REFUSED] * 10


async def test_neighbours_do_not_reach_each_other(on_host: World, making: str) -> None:
    """Both listen, both try: TCP and UDP, at the address and at all others near it."""
    code = f"""
        tcp = socket.create_server(("0.0.0.0", 5000))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", 5000))
        for server in (tcp, udp):
            server.settimeout(0.2)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(("{INTERNET}", 9))
        own = s.getsockname()[0]
        say(own)
        others = [f"10.219.0.{{n}}" for n in range(8, 14) if f"10.219.0.{{n}}" != own]
        found = []
        for other in others:
            found.append(reach(other, 5000))
            attempt(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, b"x", (other, 5000))
        heard = [attempt(tcp.accept), attempt(udp.recvfrom, 1)]
        say([sorted(set(found)), heard])
    """
    async with routed(2) as (one, other):
        first, second = await asked(one, code), await asked(other, code)
        assert first != second
        for box in (one, other):
            assert await box.heard() == [[REFUSED], ["timed out", "timed out"]]


async def test_nobody_begins_a_connection_to_a_sandbox(on_host: World) -> None:
    """Not the host, and not the outside, which has a route to it here."""
    async with routed() as (box,):
        await asked(
            box,
            """
            server = socket.create_server(("0.0.0.0", 5000))
            say("ready")
            server.accept()
            say("reached")
            """,
        )
        for where in (on_host.host, on_host.internet):
            with pytest.raises(OSError, match=r"timed out|No route|refused"):
                where.do(lambda: socket.create_connection(("10.219.0.8", 5000), 0.3))


async def test_the_source_is_always_its_own(on_host: World) -> None:
    """Neither with another address than the one given, nor with a route of the packet's own choice."""
    code = f"""
        IP_OPTIONS, IP_TRANSPARENT, IP_FREEBIND = 4, 19, 15
        def spoof(option):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setsockopt(socket.SOL_IP, option, 1)
            s.bind(("10.219.0.99", 0))
            s.sendto(b"x", ("{INTERNET}", 9))
        def source_route():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.settimeout(0.2)
            hops = b"\\x83\\x07\\x04" + socket.inet_aton("{INTERNET}") + b"\\0"
            s.setsockopt(socket.SOL_IP, IP_OPTIONS, hops)
            s.sendto(b"x", ("{INTERNET}", 9))
        def raw():
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        def packet():
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        say([attempt(spoof, IP_FREEBIND), attempt(spoof, IP_TRANSPARENT), attempt(raw), attempt(packet)])
        attempt(source_route)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"allowed", ("{INTERNET}", 9))
        say(reach("{INTERNET}", 80))
    """
    with on_host.datagrams() as taken:
        async with routed() as (box,):
            spoofs = await asked(box, code)
            assert spoofs[0] in ("EINVAL", "ENETUNREACH")
            assert spoofs[1:] == ["EPERM", "EPERM", "EAFNOSUPPORT"]
            assert await box.heard() == ANSWER.decode()
    assert taken == [b"allowed"]


async def test_no_way_out_by_ipv6(on_host: World) -> None:
    places = ["fd00:ec2::254", "2001:db8::1", "fe80::1%eth0", "ff02::1%eth0", "64:ff9b::a9fe:a9fe"]
    async with routed() as (box,):
        found = await asked(
            box,
            f"""
            def reach6(place):
                info = socket.getaddrinfo(place, 80, socket.AF_INET6, socket.SOCK_DGRAM)[0][4]
                s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                s.sendto(b"x", info)
                t = socket.socket(socket.AF_INET6)
                t.settimeout(0.5)
                t.connect(info)
            addresses = open("/proc/net/if_inet6").read().split("\\n") if {socket.has_ipv6} else []
            say([[attempt(reach6, place) for place in {places}], [a.split()[-1] for a in addresses if a]])
            """,
        )
    assert set(found[0]) <= {"ENETUNREACH", "EADDRNOTAVAIL", "EINVAL", "EHOSTUNREACH"}
    assert found[1] in (["lo"], [])


async def test_other_protocols_are_not_let_through(on_host: World) -> None:
    """SCTP, DCCP, UDP-Lite; MPTCP is TCP on the wire, and gets no further than TCP."""
    async with routed() as (box,):
        found = await asked(
            box,
            f"""
            say([
                reach("{INTERNET}", 80, protocol=132),
                reach("{INTERNET}", 80, kind=6, protocol=33),
                reach("{INTERNET}", 80, kind=socket.SOCK_DGRAM, protocol=136),
                reach("169.254.169.254", 80, protocol=262),
                reach("{HOST}", 8080, protocol=262),
            ])
            """,
        )
    absent = {"EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EINVAL", "EPERM", "EACCES", REFUSED}
    absent |= {"timeout", "ECONNREFUSED"}
    assert set(found) <= absent
    assert on_host.seen == []


async def test_what_is_given_cannot_be_changed_from_inside(on_host: World, making: str) -> None:
    """Routes, addresses, interfaces and neighbours: reading is allowed, and nothing else."""
    code = """
        import struct
        def change(kind, body, flags=0x605):
            s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            s.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
            code = struct.unpack_from("=i", s.recv(4096), 16)[0]
            if code:
                raise OSError(-code, "")
        up = struct.pack("=BxHiII", 0, 0, 100, 0, 1)
        address = struct.pack("=BBBBI", 2, 24, 0, 0, 100) + struct.pack("=HH4s", 8, 2, bytes(4))
        route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 253, 1, 0) + struct.pack("=HHI", 8, 4, 100)
        neighbour = struct.pack("=BxxxiHBB", 2, 100, 2, 0, 0) + struct.pack("=HH4s", 8, 1, bytes(4))
        say([
            attempt(change, 16, up, 5), attempt(change, 17, up, 5), attempt(change, 20, address),
            attempt(change, 21, address, 5), attempt(change, 24, route), attempt(change, 25, route, 5),
            attempt(change, 28, neighbour), attempt(change, 29, neighbour, 5),
            attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 12),
            attempt(open, "/proc/sys/net/ipv4/ip_forward", "w"),
        ])
    """
    async with routed() as (box,):
        found = await asked(box, code)
    assert found[:8] == ["EPERM"] * 8
    assert found[8] in ("EAFNOSUPPORT", "EPROTONOSUPPORT", "EPERM")
    assert found[9] in ("EROFS", "EACCES", "EPERM")


async def test_one_sandbox_cannot_fill_conntracks_table(on_host: World) -> None:
    """What it begins is bounded, by number at once and by second; what it has goes on."""
    before = on_host.tracked()
    async with routed() as (box,):
        code = f"""
            kept = socket.create_connection(("{INTERNET}", 80))
            kept.recv(5)
            def flood():
                for port in range(20000, 20000 + {rules.NEW_AT_ONCE}):
                    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    s.bind(("0.0.0.0", port + offset))
                    attempt(s.sendto, b"x", ("{INTERNET}", 9))
                    s.close()
            began = time.monotonic()
            for offset in (0, 2000, 4000):
                flood()
            took = time.monotonic() - began
            say([took, kept.recv(100).decode()])
        """
        took, rest = await asked(box, code)
        tracked = on_host.tracked() - before
    assert rest == ANSWER.decode()[5:]
    most = rules.NEW_AT_ONCE + rules.NEW_PER_SECOND * (took + 1)
    assert rules.NEW_AT_ONCE / 2 < tracked <= most < 3 * rules.NEW_AT_ONCE


async def test_a_thousand_connections_and_no_more(on_host: World) -> None:
    """Open ones: those in TIME_WAIT do not count."""
    server = on_host.internet.listen(INTERNET, 7000)
    server.listen(4096)
    try:
        async with routed() as (box,):
            code = f"""
                pipe = os.pipe()
                for turn in range(2):
                    if os.fork() == 0:
                        held = []
                        for _ in range(700):
                            s = socket.socket()
                            s.settimeout(5)
                            # The rate of new ones is another limit: keep below it.
                            time.sleep(0.001)
                            while True:
                                try:
                                    s.connect(("{INTERNET}", 7000))
                                except OSError as exc:
                                    pass
                                else:
                                    held.append(s)
                                break
                        os.write(pipe[1], f"{{len(held)}}\\n".encode())
                        signal.pause()
                reports = open(pipe[0])
                say(sum(int(reports.readline()) for _ in range(2)))
            """
            total = await asked(box, code)
    finally:
        server.close()
    assert 0.9 * rules.CONNECTIONS <= total <= rules.CONNECTIONS


async def test_closed_connections_do_not_count(on_host: World) -> None:
    """A function that connects for every request leaves a tail in TIME_WAIT, and goes on."""
    async with routed() as (box,):
        code = f"""
            done = 0
            for _ in range(900):
                done += reach("{INTERNET}", 80) == "{ANSWER.decode()}"
            say(done)
        """
        assert await asked(box, code) == 900
