from __future__ import annotations

import os
import socket

from sandbox.confine.peers import uid_of


def test_the_uid_at_the_other_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, address = listener.accept()
        accepted.close()
        assert address == client.getsockname()
        assert uid_of(address, listener.getsockname()) == os.getuid()
        assert uid_of(("127.0.0.1", 1), listener.getsockname()) is None
