"""Runs AWS's Python client (awslambdaric) with the function's handler, inside the environment.

Bound at /var/runtime/bootstrap.py, the name AWS uses too: awslambdaric leaves frames of files
called `/bootstrap.py` out of the tracebacks it reports, so ours below do not show either.
Started with -S; what `site` gives a program (exit, quit, help) is put back without its scan of
site-packages. Standard library and awslambdaric only.
"""

from __future__ import annotations

import os
import sys
import types

TYPE_CHECKING = False  # importing typing costs 2 ms, and nothing here needs it
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

TASK_ROOT = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
RUNTIME_DIR = os.environ.get("LAMBDA_RUNTIME_DIR", "/var/runtime")
ZYGOTE_DIR = "/run/lambox/zygote"  # not there inside a sandbox
CO_VARARGS = 0x04  # inspect.CO_VARARGS; importing inspect costs 6 ms


def search_path(start: Sequence[str], minor: int) -> list[str]:
    """AWS's order: code, layers, what PYTHONPATH and the interpreter say, the runtime's own."""
    rest = [entry for entry in start if entry not in (RUNTIME_DIR, TASK_ROOT, "")]
    layers = [f"/opt/python/lib/python3.{minor}/site-packages", "/opt/python"]
    return [TASK_ROOT, *layers, *rest, RUNTIME_DIR]


def takes_event_only(handler: object) -> bool:
    """Whether this is a plain function (or method) that cannot take a second positional argument.

    Anything else, callable objects and C functions included, is called as AWS calls it.
    """
    function = handler
    bound = 0
    if isinstance(handler, types.MethodType):
        function, bound = handler.__func__, 1
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    return code.co_argcount - bound == 1 and not code.co_flags & CO_VARARGS


def adapt(handler: Any) -> Any:
    """`handler(event)` made callable with a context, which it does not see."""
    if not takes_event_only(handler):
        return handler

    def handler_of_event(event: Any, context: Any) -> Any:
        return handler(event)

    return handler_of_event


def adapting(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """awslambdaric's own finding of a handler, with the adaptation behind it."""

    def load_adapted(name: str) -> Any:
        return adapt(load(name))

    return load_adapted


def become_zygote() -> None:
    """Returns only in forks that have their function (`zygote.py`), as if freshly started."""
    command = [sys.executable, "-S", sys.argv[0]]
    fresh = set(sys.modules)
    sys.path.insert(0, ZYGOTE_DIR)
    import zygote  # type: ignore[import-not-found]

    del sys.path[0], sys.modules["zygote"], sys.path_importer_cache[ZYGOTE_DIR]
    arguments, sys.argv[1:] = sys.argv[2:], []
    sys.orig_argv[:] = command
    zygote.main(arguments, command, fresh)


def main() -> None:
    # Imported before the function's folder is searched: no file of it can stand in for them.
    from awslambdaric import __main__ as client  # type: ignore[import-untyped]
    from awslambdaric import bootstrap

    if sys.argv[1:2] == ["--zygote"]:
        become_zygote()
    sys.path[:] = search_path(sys.path, sys.version_info[1])
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()
    bootstrap._get_handler = adapting(bootstrap._get_handler)
    client.main(["bootstrap", os.environ["_HANDLER"]])


if __name__ == "__main__":
    main()
