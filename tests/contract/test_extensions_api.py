"""The Extensions API and the metadata endpoint on the wire: SPEC 6.2 and 1.9."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from runtimeapi.extensions import parse_events
from sandbox.extensions import Extension, InvokeEvent, ShutdownEvent, State
from sandbox.lifecycle import Refused
from tests.contract.fakes import ACCOUNT, LANES, Environments
from tests.contract.wire import Answer, ask, connect

PREFIX = "/2020-01-01/extension"
METADATA = "/2026-01-15/metadata/execution-environment"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(params=sorted(LANES))
async def env(request: pytest.FixtureRequest) -> AsyncIterator[Environments]:
    with trio.fail_after(20):
        async with LANES[request.param][1](1) as served:
            yield served


class Asking:
    """An extension's side."""

    def __init__(self, env: Environments) -> None:
        self.address = env.addresses[0]
        self.extensions = env.faces[0].extensions
        self.hooks = env.faces[0].hooks

    async def register(
        self, name: str | None = "file", body: bytes = b'{"events":[]}', **headers: str
    ) -> Answer:
        sent = {"Lambda-Extension-Name": name} if name is not None else {}
        return await ask(
            self.address, "POST", f"{PREFIX}/register", headers={**sent, **headers}, body=body
        )

    async def call(self, method: str, path: str, **headers: str) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await ask(self.address, method, f"{PREFIX}/{path}", headers=named)


@pytest.fixture
def asking(env: Environments) -> Asking:
    return Asking(env)


def refused(answer: Answer) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.body.endswith(b"\n")
    assert list(answer.json) == ["errorMessage", "errorType"]
    return answer.status, answer.json["errorType"], answer.json["errorMessage"]


async def test_register(asking: Asking) -> None:
    answer = await asking.register(body=b'{"events":["INVOKE","SHUTDOWN","INVOKE"]}')
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    identifier = answer.headers["lambda-extension-identifier"]
    assert str(uuid.UUID(identifier)) == identifier
    assert answer.json == {
        "functionName": "hello",
        "functionVersion": "$LATEST",
        "handler": "app.handler",
    }
    (one,) = asking.extensions.all
    assert (one.state, one.events) == (State.REGISTERED, ("INVOKE", "SHUTDOWN"))


async def test_the_account_is_a_feature_to_be_asked_for(asking: Asking) -> None:
    headers = {"Lambda-Extension-Accept-Feature": "other, accountId"}
    answer = await asking.register(**headers)
    assert answer.json["accountId"] == ACCOUNT


@pytest.mark.parametrize("name", ["mine", "file"])
async def test_every_refusal_of_register(asking: Asking, name: str) -> None:
    names: list[str | None] = [None, ""]
    for empty in names:
        assert refused(await asking.register(empty)) == (
            *(403, "Extension.InvalidExtensionName", "Empty extension name"),
        )
    malformed = await asking.register(name, b'{"events":')
    assert refused(malformed)[:2] == (403, "InvalidRequestFormat")
    assert refused(await asking.register(name, b'{"events":[],"configurationKeys":["A"]}')) == (
        403,
        "InvalidRequestFormat",
        "configurationKeys are deprecated; use environment variables instead",
    )
    assert refused(await asking.register(name, b'{"events":["<X>"]}')) == (
        *(403, "Extension.InvalidEventType", "<X>: ErrorInvalidEventType"),
    )
    if name == "mine":
        assert refused(await asking.register(name, b'{"events":["SHUTDOWN"]}')) == (
            403,
            "Extension.InvalidEventType",
            "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
        )
    assert (await asking.register(name)).status == 200
    again = refused(await asking.register(name))
    assert again[:2] == (403, "Extension.InvalidExtensionState")
    asking.extensions.all.close_registration()
    assert refused(await asking.register("late")) == (
        *(403, "Extension.RegistrationClosed", "Extension registration closed already"),
    )


async def test_too_many(asking: Asking) -> None:
    for number in range(9):
        assert (await asking.register(f"mine-{number}")).status == 200
    assert refused(await asking.register("mine-10")) == (
        *(403, "Extension.TooManyExtensions", "Extension limit (10) reached"),
    )


async def test_a_body_beyond_reason_is_not_read(asking: Asking) -> None:
    answer = await asking.register(body=b'{"events":[' + b'"INVOKE",' * 10_000 + b'"INVOKE"]}')
    assert refused(answer)[:2] == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "event/next"), ("POST", "init/error"), ("POST", "exit/error")]
)
async def test_who_does_not_say_who_it_is(asking: Asking, method: str, path: str) -> None:
    kind = {"Lambda_Extension_Function_Error_Type": "Extension.Sad"}
    assert refused(await asking.call(method, path, **kind)) == (
        403,
        "Extension.MissingExtensionIdentifier",
        "Missing Lambda-Extension-Identifier header",
    )
    assert refused(await asking.call(method, path, Lambda_Extension_Identifier="me", **kind)) == (
        403,
        "Extension.InvalidExtensionIdentifier",
        "Invalid Lambda-Extension-Identifier",
    )
    unknown = await asking.call(method, path, Lambda_Extension_Identifier=NOBODY, **kind)
    words = f"Unknown extension {NOBODY}"
    if method == "POST":
        words = "Unknown Lambda-Extension-Identifier"
    assert refused(unknown) == (403, "Extension.UnknownExtensionIdentifier", words)


@pytest.mark.parametrize(
    ("path", "target"), [("init/error", "InitError"), ("exit/error", "Exited")]
)
async def test_errors(asking: Asking, path: str, target: str) -> None:
    identifier = (await asking.register()).headers["lambda-extension-identifier"]
    me = {"Lambda_Extension_Identifier": identifier}
    assert refused(await asking.call("POST", path, **me)) == (
        *(403, "Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found"),
    )
    me["Lambda_Extension_Function_Error_Type"] = "Extension.Sad"
    for _ in range(2):
        answer = await asking.call("POST", path, **me)
        assert (answer.status, answer.body) == (202, b'{"status":"OK"}\n')
    assert "failed init" in asking.hooks.told
    other = {"init/error": "exit/error", "exit/error": "init/error"}[path]
    state, heads_for = {
        "InitError": ("InitError", "Exited"),
        "Exited": ("ExitError", "InitError"),
    }[target]
    assert refused(await asking.call("POST", other, **me)) == (
        403,
        "Extension.InvalidExtensionState",
        f"State transition from {state} to {heads_for} failed for extension {identifier}. "
        "Error: State transition is not allowed",
    )
    assert refused(await asking.call("GET", "event/next", **me))[2].startswith(
        f"State transition from {state} to Ready failed for extension {identifier}."
    )


async def test_events(asking: Asking) -> None:
    registered = await asking.register(body=b'{"events":["INVOKE","SHUTDOWN"]}')
    me = {"Lambda_Extension_Identifier": registered.headers["lambda-extension-identifier"]}
    answers: list[Answer] = []

    async def ask_next() -> None:
        answers.append(await asking.call("GET", "event/next", **me))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_next)
        await asking.hooks.asked.wait()
        assert refused(await asking.call("GET", "event/next", **me))[2].startswith(
            "State transition from Ready to Ready failed for extension"
        )
        asking.extensions.all.end_init()
        asking.extensions.invoke(InvokeEvent(1_900_000_000_000, "id-1", "arn:f", "Root=1-2"))
    (invoke,) = answers
    assert invoke.status == 200
    assert invoke.headers["content-type"] == "application/json"
    assert uuid.UUID(invoke.headers["lambda-extension-event-identifier"])
    assert json.loads(invoke.body) == {
        "eventType": "INVOKE",
        "deadlineMs": 1_900_000_000_000,
        "requestId": "id-1",
        "invokedFunctionArn": "arn:f",
        "tracing": {"type": "X-Amzn-Trace-Id", "value": "Root=1-2"},
    }
    asking.extensions.all.shutdown(ShutdownEvent(1_900_000_002_000, "spindown"))
    shutdown = await asking.call("GET", "event/next", **me)
    assert "lambda-extension-event-identifier" not in shutdown.headers
    assert json.loads(shutdown.body) == {
        "eventType": "SHUTDOWN",
        "deadlineMs": 1_900_000_002_000,
        "shutdownReason": "spindown",
    }


async def test_who_goes_away_while_it_waits_may_ask_again(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = trio.Event()
    forget = asking.extensions.all.forget_next

    def forget_next(one: Extension) -> None:
        forget(one)
        forgotten.set()

    monkeypatch.setattr(asking.extensions.all, "forget_next", forget_next)
    registered = await asking.register(body=b'{"events":["INVOKE"]}')
    me = {"Lambda_Extension_Identifier": registered.headers["lambda-extension-identifier"]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: asking.call("GET", "event/next", **me))
        await asking.hooks.asked.wait()
        nursery.cancel_scope.cancel()
    await forgotten.wait()
    asking.extensions.all.end_init()
    asking.extensions.invoke(InvokeEvent(1, "id-1", "arn", ""))
    answer = await asking.call("GET", "event/next", **me)
    assert "tracing" not in json.loads(answer.body)


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"null", []),
        (b"{}", []),
        (b'{"events":null}', []),
        (b'{"Events":["INVOKE"],"more":1}', ["INVOKE"]),
    ],
)
def test_what_go_takes_for_a_request(body: bytes, events: list[str]) -> None:
    assert parse_events(body) == events


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "unexpected end of JSON input"),
        (b" \n", "unexpected end of JSON input"),
        (b"[]", "json: cannot unmarshal array into a request to register"),
        (b'{"events":"INVOKE"}', "json: cannot unmarshal string into events"),
        (b'{"events":[true]}', "json: cannot unmarshal bool into one of events"),
        (b"[" * 60_000, None),
        (b"\xff\xfe", None),
    ],
)
def test_what_it_does_not(body: bytes, message: str | None) -> None:
    with pytest.raises(Refused) as error:
        parse_events(body)
    assert (error.value.status, error.value.error_type) == (403, "InvalidRequestFormat")
    assert message is None or error.value.message == message


# --- metadata


async def test_metadata_is_for_whoever_has_the_token(env: Environments) -> None:
    address = env.addresses[0]
    headers = {"Authorization": "Bearer the token"}
    answer = await ask(address, "GET", METADATA, headers=headers)
    assert (answer.status, answer.json) == (200, {"AvailabilityZoneID": "use1-az1"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, max-age=43200, immutable"


@pytest.mark.parametrize(
    "token", [None, "", "the token", "Bearer", "Bearer other", "bearer the token"]
)
async def test_without_it_nothing_is_told(env: Environments, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": token}
    answer = await ask(env.addresses[0], "GET", METADATA, headers=headers)
    assert (answer.status, answer.body) == (401, b"Unauthorized\n")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_who_asks_again_and_again_waits(env: Environments) -> None:
    """What costs lambox more than it costs a program, and is of no use twice, is answered ever later."""
    headers = {"Authorization": "Bearer the token"}
    async with await connect(env.addresses[0]) as wire:
        began = trio.current_time()
        for _ in range(130):
            assert (await wire.ask("GET", METADATA, b"", headers)).status == 200
        assert trio.current_time() - began > 0.2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_the_method_is_looked_at_first(env: Environments, method: str) -> None:
    answer = await ask(env.addresses[0], method, METADATA)
    assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")


async def test_before_it_is_known(env: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env.faces[0], "zone_id", "")
    headers = {"Authorization": "Bearer the token"}
    answer = await ask(env.addresses[0], "GET", METADATA, headers=headers)
    assert (answer.status, answer.body) == (503, b"Service Unavailable\n")
