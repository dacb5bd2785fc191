"""The machine of an environment's extensions: every pair of its table, every refusal, any order of calls."""

from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.extensions import (
    MOST_EXTENSIONS,
    TABLE,
    Event,
    Extension,
    Extensions,
    InvokeEvent,
    ShutdownEvent,
    State,
)
from sandbox.lifecycle import Refused
from tests.machines import effort

INVOKE = InvokeEvent(1, "id-1", "arn", "Root=1")
SHUTDOWN = ShutdownEvent(2, "spindown")


def refusal(refused: pytest.ExceptionInfo[Refused]) -> tuple[int, str, str]:
    return refused.value.status, refused.value.error_type, refused.value.message


def ready(*names: str, events: tuple[str, ...] = ("INVOKE", "SHUTDOWN")) -> Extensions:
    """External extensions of these names, parked in `next`; init is over."""
    extensions = Extensions(names)
    for name in names:
        extensions.next(extensions.register(name, events).identifier)
    extensions.end_init()
    return extensions


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    one = Extension("one", external=True)
    one.state = state
    if (state, event) in TABLE:
        one.step(event, "one")
        assert one.state is TABLE[state, event]
        return
    with pytest.raises(Refused) as refused:
        one.step(event, "who")
    assert one.state is state
    target = "Exited" if event is Event.EXIT_ERROR else event.value
    assert refusal(refused) == (
        403,
        "Extension.InvalidExtensionState",
        f"State transition from {state.value} to {target} failed for extension who. "
        "Error: State transition is not allowed",
    )


@pytest.mark.parametrize(
    ("name", "events", "error_type", "message"),
    [
        (None, [], "Extension.InvalidExtensionName", "Empty extension name"),
        ("", [], "Extension.InvalidExtensionName", "Empty extension name"),
        (
            "ä" * 128,
            [],
            "Extension.InvalidExtensionName",
            "Extension name is longer than 255 bytes",
        ),
        ("file", ["INVOKE", "X"], "Extension.InvalidEventType", "X: ErrorInvalidEventType"),
        ("mine", ["X"], "Extension.InvalidEventType", "X: ErrorInvalidEventType"),
        (
            "mine",
            ["INVOKE", "SHUTDOWN"],
            "Extension.InvalidEventType",
            "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
        ),
    ],
)
def test_what_cannot_be_registered(
    name: str | None, events: list[str], error_type: str, message: str
) -> None:
    extensions = Extensions(["file"])
    with pytest.raises(Refused) as refused:
        extensions.register(name, events)
    assert refusal(refused) == (403, error_type, message)
    assert [one.name for one in extensions] == ["file"]
    assert not extensions.all_registered


def test_a_name_registers_once() -> None:
    extensions = Extensions(["file"])
    extensions.register("file", [])
    with pytest.raises(Refused) as external:
        extensions.register("file", [])
    assert refusal(external)[1:] == (
        "Extension.InvalidExtensionState",
        "State transition from Registered to Registered failed for extension file. "
        "Error: State transition is not allowed",
    )
    extensions.register("mine", [])
    with pytest.raises(Refused) as internal:
        extensions.register("mine", [])
    assert refusal(internal)[1:] == (
        "Extension.InvalidExtensionState",
        "Extension with this name already registered",
    )


def test_ten_are_the_most_and_external_ones_count() -> None:
    extensions = Extensions(["file"])
    for number in range(MOST_EXTENSIONS - 1):
        extensions.register(f"mine-{number}", [])
    with pytest.raises(Refused) as refused:
        extensions.register("one too many", [])
    assert refusal(refused)[1:] == ("Extension.TooManyExtensions", "Extension limit (10) reached")
    extensions.register("file", [])


def test_internal_ones_register_until_the_runtime_is_ready() -> None:
    extensions = Extensions()
    extensions.close_registration()
    with pytest.raises(Refused) as refused:
        extensions.register("mine", ["INVOKE"])
    assert refusal(refused)[1:] == (
        "Extension.RegistrationClosed",
        "Extension registration closed already",
    )


@pytest.mark.parametrize(
    ("identifier", "error_type", "message"),
    [
        (
            None,
            "Extension.MissingExtensionIdentifier",
            "Missing Lambda-Extension-Identifier header",
        ),
        ("x", "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier"),
        (
            "00000000-0000-0000-0000-000000000000",
            "Extension.UnknownExtensionIdentifier",
            "Unknown extension 00000000-0000-0000-0000-000000000000",
        ),
    ],
)
def test_who_is_not_found(identifier: str | None, error_type: str, message: str) -> None:
    extensions = Extensions(["file"])
    with pytest.raises(Refused) as refused:
        extensions.find(identifier)
    assert refusal(refused) == (403, error_type, message)
    with pytest.raises(Refused) as refused:
        extensions.init_error(identifier, "Extension.Sad")
    if error_type == "Extension.UnknownExtensionIdentifier":
        message = "Unknown Lambda-Extension-Identifier"
    assert refusal(refused) == (403, error_type, message)


def test_an_error_has_a_type() -> None:
    extensions = Extensions(["file"])
    one = extensions.register("file", [])
    for call in (extensions.init_error, extensions.exit_error):
        with pytest.raises(Refused) as refused:
            call(one.identifier, None)
        assert refusal(refused)[1:] == (
            "Extension.MissingHeader",
            "Lambda-Extension-Function-Error-Type not found",
        )


def test_an_identifier_is_found_however_its_uuid_is_written() -> None:
    extensions = Extensions(["file"])
    one = extensions.register("file", [])
    assert extensions.find(one.identifier.upper()) is one
    assert extensions.find(uuid.UUID(one.identifier).hex) is one


def test_init_is_over_when_all_have_asked_for_an_event() -> None:
    extensions = Extensions(["a", "b"])
    a = extensions.register("a", ["INVOKE"])
    assert not extensions.all_registered
    b = extensions.register("b", [])
    assert extensions.all_registered
    assert not extensions.all_ready
    assert extensions.next(a.identifier) == (a, None)
    assert not extensions.all_ready
    assert extensions.next(b.identifier) == (b, None)
    assert extensions.all_ready


def test_subscribers_are_told_and_awaited() -> None:
    extensions = Extensions(["a", "quiet"])
    a = extensions.register("a", ["INVOKE"])
    quiet = extensions.register("quiet", ["SHUTDOWN"])
    mine = extensions.register("mine", ["INVOKE"])
    for one in (a, quiet, mine):
        extensions.next(one.identifier)
    extensions.end_init()
    assert extensions.invoke(INVOKE) == [a, mine]
    assert (a.state, quiet.state, mine.state) == (State.RUNNING, State.READY, State.RUNNING)
    extensions.next(a.identifier)
    assert extensions.busy
    extensions.next(mine.identifier)
    assert not extensions.busy


def test_a_second_next_while_it_waits_is_refused() -> None:
    extensions = ready("a")
    (a,) = extensions
    with pytest.raises(Refused) as refused:
        extensions.next(a.identifier)
    assert refusal(refused)[2] == (
        f"State transition from Ready to Ready failed for extension {a.identifier}. "
        "Error: State transition is not allowed"
    )


def test_who_lost_the_connection_on_which_it_waited_asks_again_and_misses_nothing() -> None:
    extensions = ready("a")
    (a,) = extensions
    extensions.forget_next(a)
    assert extensions.invoke(INVOKE) == []
    assert extensions.busy
    assert extensions.next(a.identifier) == (a, INVOKE)
    assert extensions.busy
    assert extensions.next(a.identifier) == (a, None)
    assert not extensions.busy


def test_shutdown_is_told_to_external_subscribers_at_once_or_at_their_next_call() -> None:
    extensions = Extensions(["waits", "works", "deaf"])
    waits, works, deaf = (
        extensions.register(name, events)
        for name, events in (
            ("waits", ["SHUTDOWN"]),
            ("works", ["INVOKE", "SHUTDOWN"]),
            ("deaf", ["INVOKE"]),
        )
    )
    for one in (waits, works, deaf):
        extensions.next(one.identifier)
    extensions.end_init()
    extensions.invoke(INVOKE)
    extensions.next(deaf.identifier)
    assert extensions.shutdown(SHUTDOWN) == [waits]
    assert extensions.next(works.identifier) == (works, SHUTDOWN)
    assert not extensions.busy
    # Having been told, it waits for ever.
    assert extensions.next(works.identifier) == (works, None)
    assert deaf.state is State.READY


def test_after_an_error_every_call_but_the_same_is_refused() -> None:
    extensions = Extensions(["a"])
    a = extensions.register("a", ["SHUTDOWN"])
    extensions.init_error(a.identifier, "Extension.Sad")
    extensions.init_error(a.identifier, "Extension.Sad")
    with pytest.raises(Refused):
        extensions.next(a.identifier)
    with pytest.raises(Refused):
        extensions.exit_error(a.identifier, "Extension.Sad")
    assert extensions.first_fatal == "Extension.InitError"
    assert extensions.shutdown(SHUTDOWN) == []


def test_who_reports_its_end_while_it_waits_is_told_nothing_more() -> None:
    extensions = ready("a", "b")
    a, b = extensions
    extensions.exit_error(a.identifier, "Extension.Sad")
    assert extensions.invoke(INVOKE) == [b]
    assert extensions.shutdown(SHUTDOWN) == []  # b is at work, and a has said that it ends
    assert extensions.first_fatal == "Extension.ExitError"


def test_the_budget_of_a_shutdown() -> None:
    extensions = Extensions()
    assert extensions.shutdown_budget_s == 0
    extensions.register("mine", [])
    assert extensions.shutdown_budget_s == 0.5
    assert Extensions(["file"]).shutdown_budget_s == 2.0


def test_how_it_ended() -> None:
    extensions = ready("a", "b", "c")
    a, b, c = extensions
    extensions.shutdown(SHUTDOWN)
    extensions.exited(a, by_itself=True)
    extensions.exited(b, by_itself=False)
    assert (a.state, b.state, c.state) == (State.EXITED, State.SHUTDOWN_FAILED, State.RUNNING)
    extensions.exited(b, by_itself=True)
    assert b.state is State.SHUTDOWN_FAILED


class AnyOrder(RuleBasedStateMachine):
    """Extensions, the runtime and the platform do what they like, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.extensions = Extensions(["a", "b"])
        self.told = 0

    def one(self, number: int) -> Extension:
        everyone = list(self.extensions)
        return everyone[number % len(everyone)]

    @rule(
        name=st.sampled_from(["a", "b", "mine", "other", ""]),
        events=st.lists(st.sampled_from(["INVOKE", "SHUTDOWN", "NONSENSE"]), max_size=3),
    )
    def register(self, name: str, events: list[str]) -> None:
        before = len(self.extensions)
        try:
            one = self.extensions.register(name, events)
        except Refused:
            assert len(self.extensions) == before
        else:
            assert one.state is State.REGISTERED
            assert self.extensions.find(one.identifier) is one

    @rule(number=st.integers(0, 5))
    def next(self, number: int) -> None:
        one = self.one(number)
        before = one.state, one.waits
        try:
            _, event = self.extensions.next(one.identifier)
        except Refused:
            assert (one.state, one.waits) == before
        else:
            assert one.waits == (event is None)
            assert one.state is (State.READY if event is None else State.RUNNING)

    @rule(number=st.integers(0, 5), error_type=st.sampled_from(["E", ""]), init=st.booleans())
    def fail(self, number: int, error_type: str, init: bool) -> None:
        call = self.extensions.init_error if init else self.extensions.exit_error
        one = self.one(number)
        before = one.state
        try:
            call(one.identifier, error_type)
        except Refused:
            assert one.state is before
        else:
            assert self.extensions.first_fatal

    @rule(number=st.integers(0, 5))
    def connection_breaks(self, number: int) -> None:
        self.extensions.forget_next(self.one(number))

    @rule()
    def the_runtime_is_ready(self) -> None:
        self.extensions.close_registration()
        if self.extensions.all_ready:
            self.extensions.end_init()

    @rule()
    def invoke(self) -> None:
        if not self.extensions.busy:
            for one in self.extensions.invoke(INVOKE):
                assert one.state is State.RUNNING
                assert "INVOKE" in one.events

    @rule()
    def shut_down(self) -> None:
        for one in self.extensions.shutdown(SHUTDOWN):
            assert one.external
            assert "SHUTDOWN" in one.events
            assert one.state is State.RUNNING

    @rule(number=st.integers(0, 5), by_itself=st.booleans())
    def exits(self, number: int, by_itself: bool) -> None:
        self.extensions.exited(self.one(number), by_itself=by_itself)

    @invariant()
    def it_makes_sense(self) -> None:
        everyone = list(self.extensions)
        assert len(everyone) == len(self.extensions) <= MOST_EXTENSIONS
        assert len({one.identifier for one in everyone}) == len(everyone)
        for one in everyone:
            assert not (one.waits and one.state in (State.STARTED, State.REGISTERED, State.RUNNING))
            assert one.external or "SHUTDOWN" not in one.events
        assert len(self.extensions.describe()) == len(everyone)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = effort(60)
