"""Owns the command: verbs, exit codes, everything that is printed. Heavy imports are inside verbs.

Exit codes: 0 done; 1 the function failed (or doctor found trouble); 2 wrong usage; 3 lambox, the
host or its configuration is in the way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click

from lambox import config as settings

if TYPE_CHECKING:
    import ssl

    from rich.table import Table

    from lambox import credentials
    from lambox.client import Server
    from lambox.config import Config
    from lambox.node import Node

FUNCTION_ERROR, USAGE, PLATFORM = 1, 2, 3
MOST_VERSIONS = 5
"""How many published versions `lambox list` shows of a function: the newest."""
Verb = TypeVar("Verb", bound=Callable[..., Any])


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"lambox: {message}", err=True)
    sys.exit(code)


def load(config: Path | None, **flags: str | None) -> Config:
    given = {name: text for name, text in flags.items() if text is not None}
    try:
        return settings.load(given, file=config)
    except settings.ConfigError as exc:
        fail(f"wrong settings:\n{exc}", USAGE)


def config_option(verb: Verb) -> Verb:
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings file (./lambox.toml).",
    )(verb)


def functions_option(verb: Verb) -> Verb:
    return click.option("--functions", metavar="DIR", help="Folder of functions (./functions).")(
        verb
    )


def _switch_text(_: click.Context, __: click.Parameter, value: bool | None) -> str | None:
    """As a variable would have it."""
    return None if value is None else str(value).lower()


def setting_options(verb: Verb) -> Verb:
    """A flag for every setting, from the one table."""
    for setting in reversed(settings.SETTINGS):
        if setting.is_switch:
            verb = click.option(
                f"{setting.flag}/{setting.flag.replace('--', '--no-', 1)}",
                setting.name,
                default=None,
                callback=_switch_text,
                help=f"{setting.doc} (default: {setting.default_text})",
            )(verb)
            continue
        verb = click.option(
            setting.flag,
            setting.name,
            metavar=setting.metavar,
            help=f"{setting.doc} ({setting.allowed}; default: {setting.default_text})",
        )(verb)
    return verb


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lambox", message="lambox %(version)s")
def main() -> None:
    """AWS Lambda functions on plain Linux, without Docker."""


@main.command()
@config_option
@setting_options
def serve(config: Path | None, **flags: str | None) -> None:
    """Serve the functions of a folder until SIGTERM or Ctrl-C."""
    import logging

    from lambox import doctor, loglines, running
    from sandbox.confine import least

    checked = load(config, **flags)
    if not os.path.isdir(checked.functions):
        fail(
            f"{checked.functions} is not a folder of functions. "
            f"Hint: lambox new hello --functions {checked.functions}",
            USAGE,
        )
    become_root_of_our_own()
    least.give_up()
    writer = loglines.LineWriter()
    logging.basicConfig(level=logging.INFO, handlers=[loglines.LineHandler(writer)])
    logging.getLogger("hypercorn").setLevel(logging.WARNING)

    def ready(node: Node, url: str) -> None:
        writer.write(f"lambox: isolated by {node.isolation}")
        if checked.allow_weaker:
            writer.write(
                "lambox: WARNING: allow_weaker is set: functions run without "
                f"{' and '.join(checked.allow_weaker)} where this host lacks it"
            )
        for warning in exposed(checked):
            writer.write(f"lambox: WARNING: {warning}")
        count = len(node.functions.all())
        # One write: what reads this line must never see half of it.
        sys.stdout.write(f"lambox serving {count} function{'s'[: count != 1]} at {url}\n")
        sys.stdout.flush()

    try:
        doctor.require_sandbox(checked)
        code = running.serve(checked, ready, writer.function_line)
    except BaseException as exc:
        writer.close()
        explain(exc, f"cannot serve at {checked.host}:{checked.port}")
    writer.close()
    sys.exit(code)


def exposed(checked: Config) -> list[str]:
    """What others could do, as it is configured."""
    from lambox.httpsettings import is_loopback

    if is_loopback(checked.host):
        return []
    found = []
    if checked.auth == "none":
        found.append(f"auth is none: whoever reaches {checked.host} can run functions")
    if checked.tls_cert is None:
        found.append("there is no tls_cert: events and results can be read on their way")
    return found


def become_root_of_our_own() -> None:
    """For an ordinary user: a user namespace in which sandboxes can be made ahead. Before any thread.

    Where the host refuses, lambox goes on without; `lambox doctor` says what that costs.
    """
    from sandbox.confine import userns
    from sandbox.confine.spec import IsolationUnavailable

    try:
        userns.enter()
    except IsolationUnavailable as exc:
        fail(f"cannot isolate functions here: {exc}", PLATFORM)


def explain(exc: BaseException, doing: str) -> NoReturn:
    """Say what the host refuses and how to mend it; anything else is a mistake of ours, in full."""
    import errno

    from lambox.running import cause
    from lambox.secretfiles import BadSecretFile
    from sandbox.confine.spec import ConfineError
    from sandbox.errors import PlatformFault

    reason = cause(exc)
    if isinstance(reason, BadSecretFile):
        fail(str(reason), USAGE)
    if isinstance(reason, ConfineError):
        fail(f"cannot isolate functions here: {reason}\nlambox doctor tells more.", PLATFORM)
    if isinstance(reason, OSError):
        hint = "\nHint: --port 0 takes a free one" if reason.errno == errno.EADDRINUSE else ""
        named = f" ({reason.filename})" if reason.filename else ""
        fail(f"{doing}: {reason.strerror}{named}{hint}", PLATFORM)
    if isinstance(reason, PlatformFault):
        fail(f"{doing}: {reason}", PLATFORM)
    raise exc


@main.command()
@click.argument("name")
@click.argument("source", required=False, metavar="[-]")
@click.option("--payload", metavar="JSON", help="The event, as JSON.")
@click.option(
    "--event",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with the event.",
)
@click.option("--endpoint", metavar="URL", envvar="LAMBOX_ENDPOINT", help="A running server.")
@functions_option
@config_option
def invoke(
    name: str,
    source: str | None,
    payload: str | None,
    file: Path | None,
    endpoint: str | None,
    functions: str | None,
    config: Path | None,
) -> None:
    """Invoke a function: on the running server, else here, for this one call.

    The event comes from --payload, --event, standard input (-) or the function's event.json. The
    response goes to standard output, logs go to standard error; exit code 1 on a function error.
    """
    if source not in (None, "-"):
        raise click.UsageError(f"{source!r}: only - (the event on standard input) can stand here")
    if sum(given is not None for given in (source, payload, file)) > 1:
        raise click.UsageError("give one of --payload, --event and -")
    checked = load(config, functions=functions)
    event = read_event(checked.functions / name, source, payload, file)
    server = find_server(checked, endpoint)
    if endpoint is None and functions is not None and server is not None:
        # Asked for by folder: a server that happens to run must be one of this folder.
        code = str((checked.functions / name).resolve())
        if all(row["name"] != name or row["code"] != code for row in ask(server.functions)):
            server = None
    if server is not None:
        invoke_there(server, name, event)
    else:
        invoke_here(checked, name, event)


def read_event(folder: Path, source: str | None, payload: str | None, file: Path | None) -> bytes:
    import json

    if payload is not None:
        event, where = payload.encode(), "--payload"
    elif source is not None:
        event, where = sys.stdin.buffer.read(), "standard input"
    else:
        path = file or folder / "event.json"
        where = str(path)
        try:
            event = path.read_bytes()
        except FileNotFoundError:
            return b"{}"
        except OSError as exc:
            raise click.UsageError(f"{where} cannot be read: {exc.strerror}") from exc
    try:
        json.loads(event)
    except ValueError as exc:
        raise click.UsageError(f"{where} is not JSON: {exc}") from exc
    return event


def find_server(checked: Config, endpoint: str | None) -> Server | None:
    """The server at `endpoint`, which must be there; else the configured one if it runs."""
    from lambox.client import Server

    if endpoint is None:
        # 0.0.0.0 and :: are places to listen, not to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(checked.host, checked.host)
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if checked.tls_cert is None else "https"
        server = Server(f"{scheme}://{host}:{checked.port}", *shown(checked, own_server=True))
        return server if checked.port and server.is_lambox() else None
    try:
        server = Server(endpoint, *shown(checked, own_server=False))
    except ValueError as exc:
        raise click.UsageError(f"endpoint {exc}") from exc
    if not server.is_lambox():
        fail(f"no lambox answers at {endpoint}. Hint: start it with lambox serve", PLATFORM)
    return server


def shown(
    checked: Config, *, own_server: bool
) -> tuple[credentials.Credentials | None, ssl.SSLContext | None]:
    """What a server is shown, and how it is known."""
    import os

    from lambox import credentials, secretfiles

    tls = checked.tls_cert is not None or "LAMBOX_CA_FILE" in os.environ or not own_server
    try:
        found = credentials.find(checked, own_server=own_server)
        return found, credentials.trust(checked, own_server=own_server) if tls else None
    except secretfiles.BadSecretFile as exc:
        fail(str(exc), USAGE)
    except OSError as exc:
        name = os.environ.get("LAMBOX_CA_FILE") or checked.tls_cert
        fail(f"{name}: no certificates: {exc.strerror or exc}", USAGE)


def need_server(config: Path | None, endpoint: str | None) -> Server:
    checked = load(config)
    server = find_server(checked, endpoint)
    if server is None:
        fail(
            f"no lambox answers at http://{checked.host}:{checked.port}. "
            "Hint: start it with lambox serve, or name it with --endpoint or LAMBOX_ENDPOINT",
            PLATFORM,
        )
    return server


def invoke_there(server: Server, name: str, event: bytes) -> None:
    from lambox import loglines
    from lambox.client import Refused, Unreachable

    try:
        answer = server.invoke(name, event)
    except Refused as exc:
        fail(str(exc), code_for(exc.status))
    except Unreachable as exc:
        fail(f"the server is gone: {exc}", PLATFORM)
    tail = answer.log_tail
    click.echo(loglines.harmless(tail) if sys.stderr.isatty() else tail, err=True, nl=False)
    show_answer(answer.payload, failed=bool(answer.function_error))


def invoke_here(checked: Config, name: str, event: bytes) -> None:
    import logging

    from lambox import doctor, loglines, running
    from sandbox.errors import CallerError, FunctionNotFound

    become_root_of_our_own()
    writer = loglines.LineWriter()
    logging.basicConfig(level=logging.WARNING, handlers=[loglines.LineHandler(writer)])
    try:
        doctor.require_sandbox(checked)
        outcome = running.invoke_once(checked, name, event, lambda _, line: writer.write(line))
    except BaseException as exc:
        writer.close()
        reason = running.cause(exc)
        if isinstance(reason, FunctionNotFound):
            fail(f"there is no function {name} in {checked.functions}. Hint: lambox list", USAGE)
        if isinstance(reason, CallerError):
            fail(f"{reason.code}: {reason.message}", code_for(reason.status))
        explain(exc, f"cannot invoke {name}")
    writer.close()
    show_answer(outcome.payload, failed=outcome.function_error is not None)


def code_for(status: int) -> int:
    """Exit code for an HTTP status: a broken function is the function's error."""
    if status == 409:
        return FUNCTION_ERROR
    return PLATFORM if status == 429 or status >= 500 else USAGE


def show_answer(payload: bytes, *, failed: bool) -> None:
    sys.stdout.buffer.write(payload if payload.endswith(b"\n") else payload + b"\n")
    sys.stdout.buffer.flush()
    sys.exit(FUNCTION_ERROR if failed else 0)


@main.command()
@click.argument("name")
@click.option(
    "--runtime", default="python", show_default=True, help="python3.x, nodejsN.x or provided."
)
@functions_option
@config_option
def new(name: str, runtime: str, functions: str | None, config: Path | None) -> None:
    """Make the folder of a new function."""
    from lambox import scaffold

    checked = load(config, functions=functions)
    try:
        files = scaffold.make(checked.functions, name, runtime)
    except scaffold.CannotScaffold as exc:
        fail(str(exc), USAGE)
    except OSError as exc:
        fail(f"cannot write {exc.filename}: {exc.strerror}", PLATFORM)
    for file in files:
        click.echo(file)
    where = f" --functions {functions}" if functions else ""
    click.echo(f"Try it: lambox invoke {name}{where}")


@main.command("list")
@click.option("--endpoint", metavar="URL", envvar="LAMBOX_ENDPOINT", help="A running server.")
@functions_option
@config_option
def list_(endpoint: str | None, functions: str | None, config: Path | None) -> None:
    """Show the functions of the running server, else of the local folder."""
    from rich.markup import escape

    checked = load(config, functions=functions)
    server = None if functions is not None and endpoint is None else find_server(checked, endpoint)
    rows = local_functions(checked) if server is None else ask(server.functions)
    if not rows:
        click.echo(f"no functions in {checked.functions}. Hint: lambox new hello", err=True)
        return
    table = plain_table("name", "runtime", "handler", ">memory", ">timeout", "versions", "state")
    for row in rows:
        versions = " ".join(row.get("versions", ())[-MOST_VERSIONS:]) or "-"
        if row.get("problem"):
            problem = escape(f"broken: {row['problem']}")
            table.add_row(row["name"], "", "", "", "", versions, problem)
        else:
            table.add_row(
                row["name"],
                row["runtime"],
                row["handler"],
                f"{row['memory_mb']} MB",
                f"{row['timeout_s']} s",
                versions,
                row["state"],
            )
    show(table)
    for row in rows:
        for url in row.get(
            "urls", ()
        ):  # not in the table, which may be cut to the terminal's width
            click.echo(f"{row['name']} is at {url}")


def local_functions(checked: Config) -> list[dict[str, Any]]:
    """As a server would tell them."""
    import tempfile

    from rootfs.runtimes import discover
    from rootfs.trees import LayerStore
    from runtimeapi.console import describe
    from sandbox.catalog import Catalog

    if not os.path.isdir(checked.functions):
        fail(f"{checked.functions} is not a folder of functions. Hint: lambox new hello", USAGE)
    with tempfile.TemporaryDirectory(prefix="lambox-list-") as layers:
        store = LayerStore(Path(layers))
        catalog = Catalog(
            checked.functions,
            discover(),
            defaults=checked.defaults,
            layers=store,
            account_concurrency=checked.account_concurrency,
        )
        with catalog:
            return [describe(function) for function in catalog.all()]


def ask(question: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    from lambox.client import Refused, Unreachable

    try:
        return question()
    except (Refused, Unreachable) as exc:
        fail(str(exc), PLATFORM)


@main.command()
@click.option("--endpoint", metavar="URL", envvar="LAMBOX_ENDPOINT", help="A running server.")
@config_option
def ps(endpoint: str | None, config: Path | None) -> None:
    """Show the live environments of the running server."""
    server = need_server(config, endpoint)
    rows = ask(server.environments)
    extended = any(row.get("extensions") for row in rows)
    table = plain_table(
        *("id", "function", "version", "type", "state", ">age", ">invocations"),
        *(">memory", ">of", "/tmp", ">cpu"),
        *(["extensions"] if extended else []),
    )
    for row in rows:
        found = [f"{one['name']} ({one['state']})" for one in row.get("extensions", ())]
        table.add_row(
            row["id"],
            row["function"],
            row.get("version", ""),
            row.get("type", ""),
            row["state"],
            duration(row["age_s"]),
            str(row["invocations"]),
            quantity(row.get("memory_mb"), "MB"),
            quantity(row.get("memory_size_mb"), "MB"),
            row.get("tmp") or "-",
            quantity(row.get("cpu_s"), "s", 2),
            *([", ".join(found) or "-"] if extended else []),
        )
    show(table)
    for row in ask(server.prepared):
        what = f"{row['program'] or 'no runtime yet'}, network {row.get('network', '-')}"
        click.echo(f"ready: {row['ready']} of {row['wanted']} ({what}), {row['memory_mb']:.1f} MB")


def quantity(value: float | None, unit: str, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


@main.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come.")
@click.option("--endpoint", metavar="URL", envvar="LAMBOX_ENDPOINT", help="A running server.")
@config_option
def logs(name: str | None, follow: bool, endpoint: str | None, config: Path | None) -> None:
    """Show the kept log lines of one function, or of all."""
    from lambox import loglines
    from lambox.client import Refused, Unreachable

    server = need_server(config, endpoint)
    # In a pipe or a file they are what the function wrote, as in CloudWatch.
    shown = loglines.harmless if sys.stdout.isatty() else str
    try:
        for line in server.logs(name, follow=follow):
            click.echo(shown(line))
    except Refused as exc:
        fail(str(exc), code_for(exc.status))
    except Unreachable as exc:
        if not follow:
            fail(str(exc), PLATFORM)
        fail("the server has stopped", 0)
    except KeyboardInterrupt:
        sys.exit(0)


def plain_table(*columns: str) -> Table:
    """A table; a column that begins with > is right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return table


def show(table: Table) -> None:
    """In a pipe as wide as it needs to be: nothing cut, nothing wrapped, one row per line."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = 100_000
    console.width = Measurement.get(console, console.options, table).maximum + 1
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    click.echo("\n".join(line for line in lines if line))


@main.command("doctor")
@click.option("--matrix", is_flag=True, help="Try out what holds here: a table in Markdown.")
@config_option
def doctor_(config: Path | None, matrix: bool) -> None:
    """Check what this host has for isolating functions, and how to mend what is missing."""
    from rich.markup import escape

    from lambox import doctor

    checked = load(config)
    become_root_of_our_own()
    if matrix:
        from lambox.matrix import columns, markdown

        click.echo(markdown(columns(checked)))
        return
    results = doctor.examine(checked)
    table = plain_table("", "check", "found")
    for result in results:
        mend = f"\n  mend: {result.remedy}" if result.remedy else ""
        table.add_row(
            doctor.MARKS[result.verdict], escape(result.name), escape(result.found + mend)
        )
    show(table)
    if any(result.verdict == "missing" for result in results):
        click.echo("lambox cannot serve here.")
        sys.exit(1)
    click.echo("lambox can serve here.")
