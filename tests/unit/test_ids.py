"""Random identifiers out of a pageful of randomness."""

from __future__ import annotations

import os
from uuid import RFC_4122, UUID

from sandbox.ids import new_request_id, token


def test_request_ids_are_random_uuids() -> None:
    found = [UUID(new_request_id()) for _ in range(5000)]  # many pagefuls
    assert {(one.version, one.variant) for one in found} == {(4, RFC_4122)}
    assert len(set(found)) == len(found)
    assert len({str(one)[19] for one in found}) == 4  # every variant digit


def test_tokens_never_repeat() -> None:
    found = [token(8) for _ in range(5000)]
    assert {len(one) for one in found} == {16}
    assert len(set(found)) == len(found)


def test_a_forked_child_has_its_own() -> None:
    token(1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, token(16).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = os.read(read, 100).decode()
    assert theirs != token(16)
    os.close(read)
    os.close(write)
