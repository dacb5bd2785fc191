"""Owns the life of a node under the command: signals, grace period, one call without a server."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import trio

from lambox.config import Config
from lambox.node import Node, open_node
from lambox.throwaway import throwaway_state, wanted
from runtimeapi.intake import read_trace_id
from sandbox.invocation import Invocation, Outcome, new_request_id

log = logging.getLogger("lambox")
OnLine = Callable[[str, str], None]
PAUSE_S = 0.3
"""A signal sooner after the one before is the same request: a key held down, a supervisor that tells the group
as well as the process."""


def serve(config: Config, on_ready: Callable[[Node, str], None], on_line: OnLine) -> int:
    """Run a server until a signal; returns the exit code. `on_ready` gets the node and its URL.

    The first SIGTERM or SIGINT is a clean stop with the grace period, the second kills what runs
    and cleans, the third leaves the cleaning to the next start; signals in quick succession are one.
    SIGHUP stops too if the terminal is gone, else all functions are read anew.
    """

    async def main() -> int:
        requests: list[int] = []
        node: Node | None = None

        async def watch(
            scope: trio.CancelScope,
            *,
            task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
                numbers.append(signal.SIGHUP)
            had_terminal = _has_terminal()
            last = -PAUSE_S
            with trio.open_signal_receiver(*numbers) as received:
                task_status.started()
                async for number in received:
                    if number == signal.SIGHUP and not (had_terminal and not _has_terminal()):
                        if node is not None:
                            node.reload()
                        continue
                    now = trio.current_time()
                    last, since = now, now - last
                    if since < PAUSE_S:
                        continue
                    requests.append(number)
                    if len(requests) == 1 and node is not None:
                        log.info("stopping; once more to kill what runs")
                        node.stop()
                    elif len(requests) <= 2:
                        scope.cancel()
                    else:
                        os._exit(128 + number)

        async with trio.open_nursery() as nursery:
            await nursery.start(watch, nursery.cancel_scope)
            async with open_node(own, on_line=on_line) as node, trio.open_nursery() as inner:
                url = await inner.start(node.serve)
                # What has been imported and built stays: no collection needs to walk through it again
                # (100,000 objects, tens of milliseconds in the middle of somebody's invocation).
                gc.collect()
                gc.freeze()
                on_ready(node, url)
            nursery.cancel_scope.cancel()
        return 0 if len(requests) < 2 else 128 + requests[-1]

    with throwaway_state() if wanted(config.state) else nullcontext(config.state) as state:
        own = dataclasses.replace(config, state=state)
        return trio.run(main)


def _has_terminal() -> bool:
    """A controlling terminal that has not hung up (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def invoke_once(config: Config, name: str, payload: bytes, on_line: OnLine) -> Outcome:
    """One invocation on a node made for it, without a server. Raises CallerError, PlatformFault.

    Its state folder is a fresh one: the events a stopped server wrote down are not ours to run.
    """

    async def main(state: str) -> Outcome:
        # One call does not pay for sandboxes made ahead.
        own = dataclasses.replace(config, state=Path(state), zygote=False)
        async with open_node(own, on_line=on_line) as node:
            function = node.functions.get(name)
            outcome = await node.invoke(
                Invocation(
                    function=function,
                    payload=payload,
                    invoked_arn=function.arn(config.region, config.account),
                    request_id=new_request_id(),
                    trace_id=read_trace_id(None),
                )
            )
            await node.wind_up()
            return outcome

    with tempfile.TemporaryDirectory(prefix="lambox-invoke-") as state:
        return trio.run(main, state)


def cause(exc: BaseException) -> BaseException:
    """The one exception in nested groups; the group itself if there are several."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc
