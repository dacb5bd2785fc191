"""rootfs/inside/python/lambox_bootstrap.py: search path, and handlers of one argument."""

from __future__ import annotations

import functools
import traceback
from typing import Any

import pytest

from rootfs.inside.python import lambox_bootstrap as bootstrap


def test_the_search_path_is_in_awss_order() -> None:
    start = ["/var/runtime", "/var/runtime", "/mine", "/var/lang/lib/python3.11"]
    assert bootstrap.search_path(start, 11) == [
        "/var/task",
        "/opt/python/lib/python3.11/site-packages",
        "/opt/python",
        "/mine",
        "/var/lang/lib/python3.11",
        "/var/runtime",
    ]


class Callable_:
    def __call__(self, event: Any) -> Any:
        return event

    def method(self, event: Any) -> Any:
        return event

    def with_context(self, event: Any, context: Any) -> Any:
        return context

    @classmethod
    def of_class(cls, event: Any) -> Any:
        return event


def one(event: Any) -> Any:
    return event


def one_and_keyword(event: Any, *, flag: bool = False) -> Any:
    return event


def two(event: Any, context: Any) -> Any:
    return context


def optional(event: Any, context: Any = None) -> Any:
    return context


def variable(*args: Any) -> Any:
    return args


def one_and_more(event: Any, *args: Any) -> Any:
    return args


def none() -> None: ...


@functools.wraps(one)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return args


@pytest.mark.parametrize("handler", [one, one_and_keyword, Callable_().method, Callable_.of_class])
def test_a_handler_of_one_argument_gets_the_event(handler: Any) -> None:
    assert bootstrap.adapt(handler)({"a": 1}, object()) == {"a": 1}


@pytest.mark.parametrize(
    "handler",
    [
        two,
        optional,
        variable,
        one_and_more,
        none,
        wrapped,
        Callable_().with_context,
        Callable_(),
        print,
        functools.partial(two, 1),
        None,
    ],
)
def test_everything_else_is_called_as_aws_calls_it(handler: Any) -> None:
    assert bootstrap.adapt(handler) is handler


def test_the_context_is_still_given_to_who_takes_it() -> None:
    context = object()
    assert bootstrap.adapt(two)({}, context) is context
    assert bootstrap.adapt(optional)({}, context) is context


def test_a_traceback_ends_in_the_handler() -> None:
    def failing(event: Any) -> None:
        raise LookupError("x")

    with pytest.raises(LookupError) as caught:
        bootstrap.adapt(failing)({}, None)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames][1:] == ["handler_of_event", "failing"]
    # Inside, the first is of /var/runtime/bootstrap.py, which awslambdaric leaves out.
    assert frames[1].filename.endswith("bootstrap.py")


def test_finding_the_handler_stays_awslambdarics() -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return one

    assert bootstrap.adapting(load)("app.handler")(5, None) == 5
    assert loaded == ["app.handler"]
