"""Changes of a function through the Lambda API (SPEC 10.2), and its states on the way."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

import lambox.lambdaapi
from sandbox.registry.database import Database, DatabaseProblem
from sandbox.registry.resolving import AllFunctions
from tests.contract.lambda_api import Api, asked, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
INVALID = "InvalidParameterValueException"
STALE = (
    412,
    "PreconditionFailedException",
    "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to "
    "retrieve the latest Revision Id",
)
IN_PROGRESS = (
    409,
    "ResourceConflictException",
    "The operation cannot be performed at this time. An update is in progress for resource: "
    + ARN
    + "fn",
)
PENDING = (
    409,
    "ResourceConflictException",
    "The operation cannot be performed at this time. The function is currently in the following state: Pending",
)
OTHER = zipped({"index.py": "# other"})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


@contextmanager
def making_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is created or updated meanwhile stays Pending or InProgress until the block ends."""
    make, go_on = AllFunctions.make, threading.Event()

    def waits(self: AllFunctions, *given: Any) -> Any:
        assert go_on.wait(20)
        return make(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(AllFunctions, "make", waits)
        try:
            yield
        finally:
            go_on.set()


def test_configuration_is_replaced_member_by_member(api: Api) -> None:
    api.create("fn", Environment={"Variables": {"AA": "1", "BB": "2"}}, Description="first")
    before = api.client.get_function_configuration(FunctionName="fn")
    changed = api.client.update_function_configuration(
        FunctionName=ARN + "fn",
        Environment={"Variables": {"CC": "3"}},
        Timeout=10,
        MemorySize=512,
        LoggingConfig={"LogFormat": "JSON"},
        EphemeralStorage={"Size": 1024},
        RevisionId=before["RevisionId"],
    )
    assert changed["State"] == "Active"
    assert changed["LastUpdateStatus"] == "InProgress"
    assert changed["LastUpdateStatusReason"] == "The function is being created."
    assert changed["LastUpdateStatusReasonCode"] == "Creating"
    api.wait("fn")
    after = api.client.get_function_configuration(FunctionName="fn")
    assert after["Environment"] == {"Variables": {"CC": "3"}}
    assert (after["Timeout"], after["MemorySize"], after["Description"]) == (10, 512, "first")
    assert after["LoggingConfig"]["SystemLogLevel"] == "INFO"
    assert after["EphemeralStorage"] == {"Size": 1024}
    assert after["LastUpdateStatus"] == "Successful"
    assert "LastUpdateStatusReason" not in after
    assert after["CodeSha256"] == before["CodeSha256"]
    assert len({one["RevisionId"] for one in (before, changed, after)}) == 3
    version = api.behind.functions.resolve("fn", None)
    assert (version.timeout_s, version.memory_mb, dict(version.environment)) == (
        10,
        512,
        {"CC": "3"},
    )
    assert (version.log_format, version.ephemeral_storage_mb) == ("JSON", 1024)
    gone = api.client.update_function_configuration(
        FunctionName="fn", Environment={"Variables": {}}, LoggingConfig={"LogFormat": "Text"}
    )
    assert gone["Environment"] == {"Variables": {}}
    assert gone["LoggingConfig"] == {"LogFormat": "Text", "LogGroup": "/aws/lambda/fn"}


def test_code_is_replaced(api: Api) -> None:
    api.create("fn")
    before = api.client.get_function_configuration(FunctionName="fn")
    runs = api.behind.functions.resolve("fn", None)
    tried = api.client.update_function_code(FunctionName="fn", ZipFile=OTHER, DryRun=True)
    sha256 = base64.b64encode(hashlib.sha256(OTHER).digest()).decode()
    assert (tried["CodeSha256"], tried["CodeSize"]) == (sha256, len(OTHER))
    assert tried["RevisionId"] == before["RevisionId"]
    assert api.client.get_function_configuration(FunctionName="fn") | {"ResponseMetadata": 0} == (
        before | {"ResponseMetadata": 0}
    )
    api.client.update_function_code(FunctionName="fn", ZipFile=OTHER, Architectures=["x86_64"])
    api.wait("fn")
    after = api.client.get_function_configuration(FunctionName="fn")
    assert (after["CodeSha256"], after["LastUpdateStatus"]) == (sha256, "Successful")
    now = api.behind.functions.resolve("fn", None)
    assert (now.code / "index.py").read_text() == "# other"
    assert now.revision != runs.revision


def test_while_it_is_created_or_updated(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but Invoke, which has the old code; and the old RevisionId is no precondition any more."""
    client = api.client
    with making_waits(monkeypatch):
        created = client.create_function(
            FunctionName="fn",
            Runtime="python3.11",
            Handler="index.handler",
            Role="arn:aws:iam::123456789012:role/r",
            Code={"ZipFile": zipped()},
        )
        assert created["State"] == "Pending"
        before = api.kept()
        for operation in ("invoke", "update_function_configuration", "publish_version"):
            assert api.refusal(operation, FunctionName="fn") == PENDING
        assert api.refusal("update_function_code", FunctionName="fn", ZipFile=OTHER) == PENDING
        assert api.kept() == before
    api.wait("fn")
    with making_waits(monkeypatch):
        client.update_function_code(FunctionName="fn", ZipFile=OTHER)
        before = api.kept()
        for operation in ("update_function_configuration", "publish_version"):
            assert api.refusal(operation, FunctionName="fn") == IN_PROGRESS
        assert api.refusal("update_function_code", FunctionName="fn", ZipFile=OTHER) == IN_PROGRESS
        assert api.kept() == before
        runs = api.behind.functions.resolve("fn", None)
        assert (runs.code / "index.py").read_text().startswith("def handler")
        assert client.invoke(FunctionName="fn", Payload=b"1")["Payload"].read() == b"1"
        stale = created["RevisionId"]
        asked = {"FunctionName": "fn", "RevisionId": stale}
        assert api.refusal("update_function_configuration", **asked) == STALE
        assert api.refusal("update_function_code", ZipFile=OTHER, **asked) == STALE
        assert api.refusal("publish_version", **asked) == IN_PROGRESS
    api.wait("fn")
    assert api.refusal("publish_version", FunctionName="fn", RevisionId=stale) == STALE


def test_what_was_begun_is_ended_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as api:
        api.create("fn")

        async def never(name: str) -> None:
            """The server ends before the change is through."""

        control = api.behind.control
        object.__setattr__(control, "activate", never)
        api.client.update_function_code(FunctionName="fn", ZipFile=OTHER, Publish=True)
    with serving(tmp_path) as api:
        api.wait("fn")
        version = api.client.get_function_configuration(FunctionName="fn", Qualifier="1")
        assert (version["State"], version["LastUpdateStatus"]) == ("Active", "Successful")
        assert api.behind.functions.resolve("fn", "1").version == "1"


def test_a_disk_that_takes_no_more_leaves_a_change_to_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as api:
        api.create("fn")
        told = threading.Event()

        async def full(self: Database, *given: Any) -> None:
            told.set()
            raise DatabaseProblem("lambox.db: database or disk is full")

        with making_waits(monkeypatch):
            api.client.update_function_code(FunctionName="fn", ZipFile=OTHER)
            commit = Database.commit
            monkeypatch.setattr(Database, "commit", full)
        assert told.wait(20)
        refused = api.refusal("delete_function", FunctionName="fn")
        assert refused[:2] == (500, "ServiceException")
        found = api.client.get_function_configuration(FunctionName="fn")
        assert found["LastUpdateStatus"] == "InProgress"
        monkeypatch.setattr(Database, "commit", commit)
    with serving(tmp_path) as api:
        api.wait("fn")
        version = api.behind.functions.resolve("fn", None)
        assert (version.code / "index.py").read_text() == "# other"


def test_what_the_disk_has_not_taken_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambox.lambdaapi, "AGAIN_S", 0.05)
    commit, told = Database.commit, threading.Event()

    async def full(self: Database, *given: Any) -> None:
        told.set()
        raise DatabaseProblem("lambox.db: database or disk is full")

    with serving(tmp_path) as api:
        api.create("fn")
        with making_waits(monkeypatch):
            api.client.update_function_code(FunctionName="fn", ZipFile=OTHER)
            monkeypatch.setattr(Database, "commit", full)
        assert told.wait(20)
        monkeypatch.setattr(Database, "commit", commit)
        api.wait("fn")
        found = api.client.get_function_configuration(FunctionName="fn")
        assert found["LastUpdateStatus"] == "Successful"


def test_many_at_a_time(api: Api) -> None:
    """One of those that create a function does, one update at a time is taken, one version comes of it."""

    def tried(operation: str, **given: Any) -> str:
        try:
            answer = getattr(api.client, operation)(**given)
        except ClientError as exc:
            return str(exc.response["Error"]["Code"])
        return str(answer["Version"])

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: tried("create_function", **asked("fn")), range(6)))
        assert sorted(made) == ["$LATEST"] + 5 * ["ResourceConflictException"]
        api.wait("fn")
        versions = list(pool.map(lambda _: tried("publish_version", FunctionName="fn"), range(6)))
        assert versions == 6 * ["1"]
        revision = api.client.get_function_configuration(FunctionName="fn")["RevisionId"]
        update = {"FunctionName": "fn", "ZipFile": OTHER, "RevisionId": revision}
        updated = list(pool.map(lambda _: tried("update_function_code", **update), range(6)))
        assert sorted(updated)[0] == "$LATEST"
        assert set(sorted(updated)[1:]) <= {
            "PreconditionFailedException",
            "ResourceConflictException",
        }


def test_gone_while_it_was_made_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function made anew under the name is not given the code of the one before it."""
    with making_waits(monkeypatch):
        api.client.create_function(
            FunctionName="fn",
            Runtime="python3.11",
            Handler="index.handler",
            Role="arn:aws:iam::123456789012:role/r",
            Code={"ZipFile": zipped()},
        )
        api.client.delete_function(FunctionName="fn")
    api.create("fn", Code={"ZipFile": OTHER})
    runs = api.behind.functions.resolve("fn", None)
    assert (runs.code / "index.py").read_text() == "# other"


@pytest.mark.parametrize(
    ("change", "status", "code", "words"),
    [
        (
            {"Runtime": "go1.x"},
            400,
            INVALID,
            "The runtime parameter of go1.x is no longer supported",
        ),
        ({"MemorySize": 127}, 400, "ValidationException", "greater than or equal to 128"),
        ({"Environment": {"Variables": {"AWS_REGION": "x"}}}, 400, INVALID, "reserved keys"),
        ({"Environment": {"Variables": {"_AA": "x"}}}, 400, "ValidationException", "Map keys must"),
        ({"Handler": "a b"}, 400, "ValidationException", r"pattern: [^\s]+"),
        (
            {"SnapStart": {"ApplyOn": "Always"}},
            400,
            "ValidationException",
            "[PublishedVersions, None]",
        ),
        ({"Description": "x" * 257}, 400, "ValidationException", "less than or equal to 256"),
        ({"Layers": ["no-arn"]}, 400, "ValidationException", "at 'layers'"),
        ({"DeadLetterConfig": {"TargetArn": "arn:aws:s3:::b"}}, 400, INVALID, "dead letter ARN"),
        ({"ImageConfig": {"Command": ["x"]}}, 400, INVALID, "no container images"),
        ({"Timeout": "soon"}, 400, "SerializationException", "Integer"),
        ({"FunctionName": "none"}, 404, "ResourceNotFoundException", ARN + "none"),
    ],
)
def test_a_refused_change_changes_nothing(
    still: Api, change: dict[str, object], status: int, code: str, words: str
) -> None:
    before = still.kept()
    given = {"FunctionName": "still", "Timeout": 7, **change}
    refused = still.refusal("update_function_configuration", **given)
    assert refused[:2] == (status, code)
    assert words in refused[2]
    assert still.kept() == before


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("still")) as api:
        api.create("still")
        yield api
