"""Owns what a runtime is told: its command line and environment variables (SPEC 5.1, 5.3). Pure.

`AWS_LAMBDA_RUNTIME_API` is not among them: the first process inside sets it, it made the listener.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rootfs.runtimes import Runtime

TASK_ROOT = "/var/task"
RUNTIME_DIR = "/var/runtime"
RUNTIME_API = "127.0.0.1:9001"
"""In a network namespace of its own, where a prepared runtime always is."""
PARKED = "/run/lambox/parked.mjs"
AT_START = (
    "AWS_LAMBDA_EXEC_WRAPPER",
    "GLIBC_",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC_",
    "NODE_",
    "OPENSSL_",
    "SSL_CERT_",
    "UV_",
)
"""Beginnings of variables that Node.js and its libraries read when they start, and not again."""
TELEMETRY_FD = 62
"""Where AWS's own runtimes find their log pipe (SPEC 4.3)."""

RESERVED = frozenset({
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_METADATA_API",
    "AWS_LAMBDA_METADATA_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
})  # fmt: skip
"""Keys a function's own environment may not set (SPEC 5.1, column R)."""

NOT_FOR_EXTENSIONS = frozenset({
    "_AWS_XRAY_DAEMON_ADDRESS",
    "_AWS_XRAY_DAEMON_PORT",
    "_HANDLER",
    "_LAMBDA_TELEMETRY_LOG_FD",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_XRAY_CONTEXT_MISSING",
    "AWS_XRAY_DAEMON_ADDRESS",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
})  # fmt: skip
"""What a runtime is told and extensions are not (SPEC 5.1)."""

RESERVED_MESSAGE = (
    "Lambda was unable to configure your environment variables because the environment variables "
    "you have provided contains reserved keys that are currently not supported for modification. "
    "Reserved keys used in this request: "
)
"""AWS's words; a comma-space separated list of keys follows."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the SDKs inside sign with."""

    access_key_id: str = "lambox"
    secret_access_key: str = "lambox"
    session_token: str = "lambox"


def function_environment(
    runtime: Runtime,
    *,
    name: str,
    handler: str,
    memory_mb: int,
    version: str = "$LATEST",
    region: str = "us-east-1",
    log_group: str = "",
    log_stream: str = "",
    log_level: str = "",
    initialization_type: str = "on-demand",
    credentials: Credentials | None = None,
    user: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The whole environment of a runtime process, the user's variables under the reserved ones.

    `log_group` defaults to AWS's `/aws/lambda/NAME`; give `log_stream` one name per environment
    (SPEC 4.1). It is never empty: AWS's client for Node.js refuses to start without one.
    `log_level` is given for a log of format JSON, and says so: a Text function's has neither variable.
    """
    credentials = credentials or Credentials()
    user = dict(user or {})
    reserved = {
        "_HANDLER": handler,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_VERSION": version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
        "AWS_LAMBDA_INITIALIZATION_TYPE": initialization_type,
        "AWS_LAMBDA_LOG_GROUP_NAME": log_group or f"/aws/lambda/{name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": log_stream or f"1970/01/01/[{version}]{'0' * 32}",
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_SESSION_TOKEN": credentials.session_token,
        "LAMBDA_TASK_ROOT": TASK_ROOT,
        "LAMBDA_RUNTIME_DIR": RUNTIME_DIR,
    }
    if log_level:
        reserved |= {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": log_level}
    if runtime.family != "provided":
        reserved["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{runtime.identifier}"
        reserved["_LAMBDA_TELEMETRY_LOG_FD"] = str(TELEMETRY_FD)
    user = {key: value for key, value in user.items() if key not in RESERVED}
    if runtime.family == "python" and "LD_LIBRARY_PATH" in user:
        # A shared libpython in /var/lang/lib is found by nothing else: on AWS it has an rpath.
        user["LD_LIBRARY_PATH"] += ":/var/lang/lib"
    return {**runtime_environment(runtime), **user, **reserved}


def runtime_environment(runtime: Runtime) -> dict[str, str]:
    """The part that belongs to the runtime; a function's own variables may override all of it."""
    lang = "" if runtime.family == "provided" else "/var/lang"
    environment = {
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PATH": f"{lang and lang + '/bin:'}/usr/local/bin:/usr/bin/:/bin:/opt/bin",
        "LD_LIBRARY_PATH": (
            f"{lang and lang + '/lib:'}/lib64:/usr/lib64:{RUNTIME_DIR}:{RUNTIME_DIR}/lib:"
            f"{TASK_ROOT}:{TASK_ROOT}/lib:/opt/lib"
        ),
        "PWD": TASK_ROOT,
        "SHLVL": "0",
    }
    if runtime.family == "python":
        environment |= {"PYTHONPATH": RUNTIME_DIR, "LC_CTYPE": "C.UTF-8"}
    elif runtime.family == "nodejs":
        major = runtime.version.partition(".")[0]
        environment["NODE_PATH"] = (
            f"/opt/nodejs/node{major}/node_modules:/opt/nodejs/node_modules:"
            f"{RUNTIME_DIR}/node_modules:{RUNTIME_DIR}:{TASK_ROOT}"
        )
    return environment


def zone_id(region: str) -> str:
    """Of an availability zone of this region, as AWS names them: us-east-1 -> use1-az1."""
    area, *parts, number = region.split("-")
    for whole in ("north", "south", "east", "west", "central"):
        parts = [part.replace(whole, whole[0]) for part in parts]
    return f"{area}{''.join('g' if part == 'gov' else part for part in parts)}{number}-az1"


def extension_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of an external extension, from that of its runtime."""
    return {key: value for key, value in environment.items() if key not in NOT_FOR_EXTENSIONS}


def command(
    runtime: Runtime,
    *,
    environment: Mapping[str, str] | None = None,
    code: Path | None = None,
    opt: Path | None = None,
) -> tuple[str, ...]:
    """The argv inside. The handler travels in `_HANDLER`, as on AWS.

    `environment` is looked at for AWS_LAMBDA_EXEC_WRAPPER; `code` and `opt` (host folders) for a
    `bootstrap`. Where there is none, /var/task/bootstrap is named all the same: its exec fails,
    and that is the error AWS reports.
    """
    if runtime.family == "provided":
        # Without layers nothing is looked up: the folder's file system may not answer.
        if code is None or opt is None or _is_file(code / "bootstrap"):
            return (f"{TASK_ROOT}/bootstrap",)
        return ("/opt/bootstrap" if _is_file(opt / "bootstrap") else f"{TASK_ROOT}/bootstrap",)
    if runtime.family == "python":
        # -S: no site-packages to scan (4 ms, and the host's packages are none of the function's).
        argv: tuple[str, ...] = (
            f"/var/lang/bin/{runtime.identifier}",
            "-S",
            f"{RUNTIME_DIR}/bootstrap.py",
        )
    else:
        argv = ("/var/lang/bin/node", f"{RUNTIME_DIR}/index.mjs")
    wrapper = (environment or {}).get("AWS_LAMBDA_EXEC_WRAPPER", "")
    if wrapper:
        # Through a shell, as AWS's bootstrap does it: a missing wrapper is then `exit status 127`.
        return ("/bin/sh", "-c", 'exec "$0" "$@"', wrapper, *argv)
    return argv


def preparation(
    runtime: Runtime, environment: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """(argv, environment) of the runtime started before its function is known; None: it cannot be.

    `environment` is what it would be told later: what counts only at a start has to be the same. (A Python
    sees to that itself: its fork executes a fresh interpreter where it has to, rootfs/inside/python/zygote.py.)
    """
    prepared = {**runtime_environment(runtime), "AWS_LAMBDA_RUNTIME_API": RUNTIME_API}
    if runtime.family == "python":
        return command(runtime), prepared
    if runtime.family == "nodejs" and _at_start(environment) == _at_start(prepared):
        return ("/var/lang/bin/node", PARKED), prepared
    return None


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(AT_START)}


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)
    except OSError:
        return False
