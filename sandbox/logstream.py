"""Owns an environment's log stream: what happens in it and what is printed in it, on its way to the log.

Three readers: the function's log (in its format, through its filters), the tail of an invocation that asked for
one (as the log has it), and whoever subscribed to telemetry (everything, unfiltered: SPEC 4.4).
"""

from __future__ import annotations

from collections.abc import Callable

from sandbox import events
from sandbox.events import PlatformEvent
from sandbox.function import FunctionVersion
from sandbox.loggingconfig import DEFAULT_LEVEL, RANKS, level_of
from sandbox.logs import Frame, LogBook, Tail
from sandbox.telemetry import Telemetry

CLOCKS_APART_S = 60.0
"""A time that a function gives its log event is taken if it is this near to ours."""


class LogStream:
    """`platform`, `line`, `frame` and `extension` never wait and never fail."""

    def __init__(
        self, function: FunctionVersion, logbook: LogBook, wall: Callable[[], float]
    ) -> None:
        self.tail: Tail | None = None
        """Of the invocation that is out, if it wants one."""
        self.json = function.log_format == "JSON"
        self.telemetry = Telemetry(function.name, objects=self.json, wall=wall)
        self.heard = True
        """Somebody subscribed to telemetry, or still may."""
        self.detailed = True
        """Somebody wants more than lines of text: events that have none are worth making."""
        self._name = function.name
        self._logbook = logbook
        self._wall = wall
        self._system = RANKS[function.system_log_level or DEFAULT_LEVEL]
        self._application = RANKS[function.application_log_level or DEFAULT_LEVEL]

    def platform(self, event: PlatformEvent) -> None:
        self.log(event)
        if self.heard:
            self.telemetry.tell("platform", event, self._wall())

    def log(self, event: PlatformEvent) -> None:
        """To the log alone."""
        if self.json:
            if RANKS.get(event.level, -1) < self._system:
                return
            line: str | None = events.as_json(event, self._wall())
        else:
            line = event.text()
        if line is not None:
            if self.tail is not None:
                self.tail.add(line)
            self._logbook.write(self._name, line)

    def hear(self, event: PlatformEvent) -> None:
        """To subscribers alone."""
        if self.heard:
            self.telemetry.tell("platform", event, self._wall())

    def line(self, line: str) -> None:
        """The function printed it."""
        if not self.json or RANKS[level_of(line)] >= self._application:
            self.write(line)
        if self.heard:
            self.telemetry.tell("function", line, self._wall())

    def frame(self, frame: Frame) -> None:
        """The function's runtime logged it; it says when and at which level (SPEC 4.3)."""
        text = frame.text
        if not self.json or RANKS[frame.level or level_of(text)] >= self._application:
            self.write(text)
        if self.heard:
            now = self._wall()
            at = now if frame.at is None or abs(frame.at - now) > CLOCKS_APART_S else frame.at
            self.telemetry.tell("function", text, at)

    def extension(self, line: str) -> None:
        """An extension printed it. The application's level is the function's alone."""
        self.write(line)
        if self.heard:
            self.telemetry.tell("extension", line, self._wall())

    def write(self, line: str) -> None:
        """To the log as it is: of the platform's own, and of no kind that AWS knows."""
        if self.tail is not None:
            self.tail.add(line)
        self._logbook.write(self._name, line)

    def init_ended(self) -> None:
        """Nobody may subscribe any more; if nobody has, nobody is told from now on."""
        self.telemetry.close()
        self.heard = self.telemetry.listening
        self.detailed = self.heard or self.json
