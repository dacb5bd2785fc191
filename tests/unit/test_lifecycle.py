"""Every (state, event) pair of the runtime's machine."""

from __future__ import annotations

import itertools

import pytest

from sandbox.lifecycle import TABLE, Event, Lifecycle, NextEvent, Refused, State

EVENT = NextEvent("id-1", "attempt-1", 1, "arn", "", None, None, "application/json", b"{}")

LEGAL = {
    (State.STARTED, Event.NEXT): State.READY,
    (State.STARTED, Event.INIT_ERROR): State.INIT_ERROR,
    (State.READY, Event.NEXT): State.READY,
    (State.READY, Event.INVOKE): State.RUNNING,
    (State.RUNNING, Event.NEXT): State.RUNNING,
    (State.RUNNING, Event.RESPONSE): State.RESPONDING,
    (State.RUNNING, Event.ERROR): State.RESPONSE_SENT,
    (State.RESPONDING, Event.SENT): State.RESPONSE_SENT,
    (State.RESPONSE_SENT, Event.NEXT): State.READY,
}


def in_state(state: State) -> Lifecycle:
    machine = Lifecycle()
    machine.state = state
    if state in (State.RUNNING, State.RESPONDING, State.RESPONSE_SENT):
        machine.event = EVENT
    return machine


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    machine = in_state(state)
    if event is Event.EXIT:
        machine.step(event)
        assert machine.state is State.EXITED
    elif (state, event) in LEGAL:
        machine.step(event)
        assert machine.state is LEGAL[state, event]
    else:
        with pytest.raises(Refused) as refused:
            machine.step(event)
        assert machine.state is state
        assert refused.value.status == 403
        assert refused.value.error_type == "InvalidStateTransition"
        assert refused.value.message == (
            f"State transition from {state.value} to {event.value} failed for runtime. "
            "Error: State transition is not allowed"
        )


def test_the_table_has_nothing_else() -> None:
    assert {pair: target for pair, target in TABLE.items() if pair[1] is not Event.EXIT} == LEGAL


def test_second_response_names_awss_state() -> None:
    machine = in_state(State.RESPONSE_SENT)
    machine.check_id("id-1", None)
    with pytest.raises(Refused, match="from RuntimeResponseSentState to InvocationResponse"):
        machine.step(Event.RESPONSE)


@pytest.mark.parametrize("state", [State.STARTED, State.READY, State.INIT_ERROR])
def test_no_id_is_valid_when_nothing_is_out(state: State) -> None:
    with pytest.raises(Refused) as refused:
        in_state(state).check_id("id-1", None)
    assert (refused.value.status, refused.value.error_type) == (400, "InvalidRequestID")


def test_a_wrong_id_is_refused_before_the_state_is_looked_at() -> None:
    with pytest.raises(Refused) as refused:
        in_state(State.RESPONSE_SENT).check_id("id-2", None)
    assert refused.value.status == 400


def test_another_attempts_invocation_id_is_gone() -> None:
    machine = in_state(State.RUNNING)
    machine.check_id("id-1", "attempt-1")
    machine.check_id("id-1", "")
    with pytest.raises(Refused) as refused:
        machine.check_id("id-1", "attempt-0")
    assert (refused.value.status, refused.value.error_type) == (410, "InvokeTimeout")


def test_the_id_is_stale_after_next() -> None:
    machine = in_state(State.RESPONSE_SENT)
    machine.step(Event.NEXT)
    with pytest.raises(Refused):
        machine.check_id("id-1", None)
