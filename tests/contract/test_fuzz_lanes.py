"""Bytes of any kind, in any pieces: both lanes answer alike, and what the pieces are makes no difference.

`test_lanes.py` compares what somebody thought of; here hypothesis mixes, damages and cuts it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import trio
from hypothesis import example, given
from hypothesis import strategies as st

from tests.contract.test_lanes import (
    ERROR,
    INVOKE,
    NEXT,
    RESPONSE,
    SHAPES,
    at_callers,
    at_environment,
    invoke,
    respond,
    shape,
)
from tests.contract.wire import chunked, head
from tests.machines import effort

EDITS = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.sampled_from(
            [
                b"",
                b" ",
                b"\t",
                b"\r",
                b"\n",
                b"\r\n",
                b"\0",
                b":",
                b"%",
                b",",
                b"0",
                b"\xff",
                b"\x80",
            ]
        )
        | st.binary(max_size=3),
        st.integers(0, 3),
    ),
    max_size=2,
)
CUTS = st.lists(st.integers(0, 600), max_size=4)
AT_URL = b"Host: %b.lambda-url.us-east-1.localhost" % (b"a" * 32)
ODD = (
    invoke().replace(b"Host: 127.0.0.1:9001", AT_URL),
    invoke(path=f"/{'a' * 32}/invoke/hello"),
    head("POST", INVOKE, {"Transfer-Encoding": "chunked"}) + chunked(b"{", b"}"),
    head("POST", INVOKE, {"Expect": "100-continue", "Content-Length": "2"}) + b"{}",
    invoke(b"[1, 2"),
    invoke(b"\xff"),
    invoke(X_Amz_Invocation_Type="Event"),
    invoke(X_Amz_Log_Type="Tail"),
    invoke(x_amzn_requestid="odd"),
    invoke(path="/2015-03-31/functions/nope/invocations"),
    invoke(path="/invoke/hello"),
    head("GET", "/healthz", {}),
    head("GET", "/nowhere", {}),
)
AT_CALLERS = st.sampled_from([invoke(), invoke(b'"then"'), *ODD])
AT_ENVIRONMENT = st.sampled_from(
    [
        head("GET", NEXT, {}),
        respond(),
        respond(path=ERROR),
        respond(b"x" * 300),
        head("POST", RESPONSE, {"Transfer-Encoding": "chunked"}) + chunked(b"a", b"b"),
        respond(Lambda_Runtime_Function_Response_Mode="streaming"),
        respond(path="/2018-06-01/runtime/init/error"),
    ]
)
NAMES = st.sampled_from(sorted(SHAPES))
ONE_CALLER = AT_CALLERS | NAMES.map(lambda name: shape(name, INVOKE))
ONE_RUNTIME = AT_ENVIRONMENT | NAMES.map(lambda name: shape(name, RESPONSE))


def pieces_of(
    requests: list[bytes], edits: list[tuple[int, bytes, int]], cuts: list[int]
) -> list[bytes]:
    data = b"".join(requests)
    for at, new, gone in edits:
        place = at % (len(data) + 1)
        data = data[:place] + new + data[place + gone :]
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


Ask = Callable[[str, list[bytes], str], Any]


async def compare(ask: Ask, pieces: list[bytes], then: str) -> None:
    with trio.fail_after(30):
        split = await ask("fast", pieces, then)
        assert split == await ask("quart", pieces, then)
        answer, _, did = await ask("fast", [b"".join(pieces)], then)
        assert did == split[2]
        assert answer == split[0]
        assert b"Traceback" not in answer
        assert b'File "' not in answer


@effort(10)
@given(st.lists(ONE_CALLER, min_size=1, max_size=3), EDITS, CUTS, st.sampled_from(["wait", "half"]))
@example([invoke(), invoke(b'"then"')], [], [1, 30, 200], "wait")
def test_callers(
    requests: list[bytes], edits: list[tuple[int, bytes, int]], cuts: list[int], then: str
) -> None:
    trio.run(compare, at_callers, pieces_of(requests, edits, cuts), then)


@effort(10)
@given(
    st.lists(ONE_RUNTIME, min_size=1, max_size=3), EDITS, CUTS, st.sampled_from(["wait", "half"])
)
@example([head("GET", NEXT, {}), respond()], [], [1, 30, 200], "wait")
def test_runtimes(
    requests: list[bytes], edits: list[tuple[int, bytes, int]], cuts: list[int], then: str
) -> None:
    trio.run(compare, at_environment, pieces_of(requests, edits, cuts), then)
