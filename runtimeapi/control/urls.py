"""Owns function URL configurations: Create-, Get-, Update-, Delete-, ListFunctionUrlConfig(s) (SPEC 9.1, 10.5)."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime

import trio
from quart import request

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, Operation, conflict, invalid, missing
from runtimeapi.control.paging import Key, page
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach
from runtimeapi.control.rendering import Output
from runtimeapi.urls.directory import FEATURE, UrlDirectory, cors_members, new_id
from runtimeapi.urls.directory import FunctionUrl as Url
from runtimeapi.urls.names import address
from sandbox.errors import CallerError, FunctionNotFound
from sandbox.function import FunctionVersion
from sandbox.registry.records import LATEST, Document, FunctionRecord

NO_FUNCTION = "Function does not exist"


async def create_function_url_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    _check_cors(given)
    async with control.registry.edit() as edit:
        record = _record(control, ref)
        if _declared(control, ref) is not None or _kept(record, ref) is not None:
            raise conflict(
                f"Failed to create function url config for [functionArn = {ref.invoked_arn}]. "
                "Error message:  FunctionUrlConfig exists for this Lambda function"
            )
        document = {
            "UrlId": new_id(),
            "AuthType": given["AuthType"],
            "Cors": given.get("Cors"),
            "InvokeMode": given.get("InvokeMode", "BUFFERED"),
            "CreationTime": _stamp(control),
            "LastModifiedTime": _stamp(control),
        }
        edit.put(_attached(record, ref, document))
    shown = _shown(ref, document, control)
    del shown["LastModifiedTime"]
    return {**shown, "InvokeMode": given.get("InvokeMode")}


async def get_function_url_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    try:
        record = _record(control, ref)
    except CallerError as exc:
        raise missing() from exc
    if (declared := _declared(control, ref)) is not None:
        return await _shown_folders(control, declared)
    document = _kept(record, ref)
    if document is None:
        raise missing()
    return _shown(ref, document, control)


async def update_function_url_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    _check_cors(given)
    async with control.registry.edit() as edit:
        record = _record(control, ref)
        _refuse_folders(control, ref)
        document = _kept(record, ref)
        if document is None:
            raise missing()
        changes: Document = {
            member: given[member]
            for member in ("AuthType", "Cors", "InvokeMode")
            if member in given
        }
        document = {**document, **changes, "LastModifiedTime": _stamp(control)}
        edit.put(_attached(record, ref, document))
    return _shown(ref, document, control)


async def delete_function_url_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    async with control.registry.edit() as edit:
        try:
            record = _record(control, ref)
        except CallerError as exc:
            raise missing() from exc
        _refuse_folders(control, ref)
        if _kept(record, ref) is None:
            raise missing()
        edit.put(_attached(record, ref, None))
    return {}


async def list_function_url_configs(control: Control, given: Input) -> Output:
    ref = replace(_ref(control, given), qualifier=None)
    record = _record(control, ref)
    found: dict[Key, Output] = {}
    if (declared := _declared(control, ref)) is not None:
        found["", 0] = await _shown_folders(control, declared)
    for qualifier, document in record.attached.get(FEATURE, {}).items():
        where = replace(ref, qualifier=None if qualifier == LATEST else qualifier)
        if qualifier in record.aliases or (qualifier == LATEST and declared is None):
            found[where.qualifier or "", 0] = _shown(where, document, control)
    keys, marker = page(list(found), given)
    return {"FunctionUrlConfigs": [found[key] for key in keys], "NextMarker": marker}


# -- what is meant


def _ref(control: Control, given: Input) -> FunctionRef:
    return control.ref(given["FunctionName"], given.get("Qualifier"))


def _record(control: Control, ref: FunctionRef) -> FunctionRecord:
    """Raises CallerError in this resource's words, which do not name the function."""
    try:
        record = control.record(ref)
    except FunctionNotFound as exc:
        raise missing(NO_FUNCTION) from exc
    if ref.qualifier is not None and ref.qualifier not in record.aliases:
        raise missing(NO_FUNCTION)
    return record


def _declared(control: Control, ref: FunctionRef) -> Url | None:
    """What function.toml says; of $LATEST alone."""
    if ref.qualifier is not None:
        return None
    directory = UrlDirectory(
        control.functions, control.registry, region=control.region, account=control.account
    )
    return directory.of_folder(ref.name)


def _refuse_folders(control: Control, ref: FunctionRef) -> None:
    if _declared(control, ref) is not None:
        raise conflict(
            f"The function URL of {ref.name} is configured in its function.toml. "
            "Hint: change [url] there"
        )


def _check_cors(given: Input) -> None:
    """What would not go into a header."""
    for member, values in given.get("Cors", {}).items():
        for value in values if isinstance(values, list) else []:
            if not value.isprintable():
                raise invalid(f"Cors.{member} has a value with control characters.")


# -- what is kept


def _kept(record: FunctionRecord, ref: FunctionRef) -> Document | None:
    found: Document | None = record.attached.get(FEATURE, {}).get(ref.qualifier or LATEST)
    return found


def _attached(
    record: FunctionRecord, ref: FunctionRef, document: Document | None
) -> FunctionRecord:
    return attach(record, FEATURE, ref.qualifier or LATEST, document)


def _stamp(control: Control) -> str:
    return _written(control.now())


def _written(moment: datetime) -> str:
    """2022-05-31T20:15:12.471Z"""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return f"{text[:-3]}Z"


def _shown(ref: FunctionRef, document: Document, control: Control) -> Output:
    return {
        "FunctionUrl": _url(document["UrlId"], control),
        "FunctionArn": ref.invoked_arn,
        "AuthType": document["AuthType"],
        "Cors": document.get("Cors") or None,
        "CreationTime": document["CreationTime"],
        "LastModifiedTime": document["LastModifiedTime"],
        "InvokeMode": document["InvokeMode"],
    }


async def _shown_folders(control: Control, url: Url) -> Output:
    function = control.functions.resolve(url.function, None)
    changed = await trio.to_thread.run_sync(_changed, function)
    return {
        "FunctionUrl": _url(url.id, control),
        "FunctionArn": function.arn(control.region, control.account),
        "AuthType": url.config.auth_type,
        "Cors": cors_members(url.config.cors),
        "CreationTime": changed,
        "LastModifiedTime": changed,
        "InvokeMode": url.config.invoke_mode,
    }


def _changed(function: FunctionVersion) -> str:
    """When its function.toml was. Blocks."""
    try:
        at = os.stat(function.code / "function.toml").st_mtime
    except OSError:
        at = 0.0
    return _written(datetime.fromtimestamp(at, UTC))


def _url(id_: str, control: Control) -> str:
    """As whoever asks reaches this server."""
    host = request.headers.get("host", "")
    return address(id_, host=host, secure=request.scheme == "https", region=control.region)


OPERATIONS: dict[str, Operation] = {
    "CreateFunctionUrlConfig": create_function_url_config,
    "GetFunctionUrlConfig": get_function_url_config,
    "UpdateFunctionUrlConfig": update_function_url_config,
    "DeleteFunctionUrlConfig": delete_function_url_config,
    "ListFunctionUrlConfigs": list_function_url_configs,
}
_FOLDERS = "What a function.toml says of a URL is shown, and changed there alone (409)."
NOTES = {
    "CreateFunctionUrlConfig": "FunctionUrl is an address of this server.",
    "UpdateFunctionUrlConfig": _FOLDERS,
    "DeleteFunctionUrlConfig": _FOLDERS,
}
