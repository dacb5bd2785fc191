"""Functions, versions and aliases in any order of operations, against a model of what AWS says they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.contract.lambda_api import Api, asked, serving, zipped
from tests.machines import effort

PACKAGES = [zipped({"index.py": f"# {number}"}) for number in range(3)]
NAMES = st.sampled_from(["a", "b"])
CODES = st.integers(0, 2)
NUMBERS = st.integers(1, 4).map(str)
ALIASES = st.sampled_from(["live", "next"])
RUNS = itertools.count()

What = tuple[str, int]
"""Description and package."""


@dataclass(frozen=True)
class Alias:
    version: str
    weights: dict[str, float] = field(default_factory=dict)

    def leads_to(self, version: str) -> bool:
        return version == self.version or version in self.weights


@dataclass(frozen=True)
class Function:
    latest: What
    versions: dict[str, What] = field(default_factory=dict)
    """What each of them is made from."""
    aliases: dict[str, Alias] = field(default_factory=dict)

    def published(self, number: int) -> tuple[Function, bool]:
        """With $LATEST as version `number`; whether there was something to publish."""
        if self.versions.get(str(number - 1)) == self.latest:
            return self, False
        return replace(self, versions={**self.versions, str(number): self.latest}), True


class Machine(RuleBasedStateMachine):
    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api
        self.run = next(RUNS)
        self.known: dict[str, Function] = {}
        self.next = {"a": 1, "b": 1}

    def name(self, letter: str) -> str:
        """Numbers go on across functions of one name, so every run has its own."""
        return f"{letter}{self.run}"

    def teardown(self) -> None:
        for letter in self.known:
            self.api.client.delete_function(FunctionName=self.name(letter))

    def tried(self, works: bool, operation: str, letter: str, **given: Any) -> Any:
        """The answer; None, with nothing changed, where it is to be refused."""
        given["FunctionName"] = self.name(letter)
        if works:
            return getattr(self.api.client, operation)(**given)
        generation = self.api.behind.control.registry.generation
        assert self.api.refusal(operation, **given)[0] in (400, 404, 409)
        assert self.api.behind.control.registry.generation == generation
        return None

    def publish(self, letter: str, answer: Any) -> None:
        function, new = self.known[letter].published(self.next[letter])
        self.known[letter] = function
        self.next[letter] += new
        assert answer["Version"] == str(self.next[letter] - 1)

    @rule(letter=NAMES, code=CODES, publish=st.booleans())
    def create(self, letter: str, code: int, publish: bool) -> None:
        given = asked("", Code={"ZipFile": PACKAGES[code]}, Publish=publish, Description="")
        del given["FunctionName"]
        answer = self.tried(letter not in self.known, "create_function", letter, **given)
        if answer is not None:
            self.known[letter] = Function(("", code))
            if publish:
                self.publish(letter, answer)
            self.api.wait(self.name(letter))

    @rule(letter=NAMES, code=CODES, publish=st.booleans())
    def update_code(self, letter: str, code: int, publish: bool) -> None:
        there = letter in self.known
        given = {"ZipFile": PACKAGES[code], "Publish": publish}
        answer = self.tried(there, "update_function_code", letter, **given)
        if there:
            function = self.known[letter]
            self.known[letter] = replace(function, latest=(function.latest[0], code))
            if publish:
                self.publish(letter, answer)
            self.api.wait(self.name(letter))

    @rule(letter=NAMES, text=st.sampled_from(["", "x"]))
    def update_configuration(self, letter: str, text: str) -> None:
        there = letter in self.known
        self.tried(there, "update_function_configuration", letter, Description=text)
        if there:
            function = self.known[letter]
            self.known[letter] = replace(function, latest=(text, function.latest[1]))
            self.api.wait(self.name(letter))

    @rule(letter=NAMES)
    def publish_version(self, letter: str) -> None:
        there = letter in self.known
        answer = self.tried(there, "publish_version", letter)
        if there:
            self.publish(letter, answer)

    @rule(letter=NAMES, number=NUMBERS)
    def delete_version(self, letter: str, number: str) -> None:
        function = self.known.get(letter)
        free = function is not None and not any(
            alias.leads_to(number) for alias in function.aliases.values()
        )
        self.tried(free, "delete_function", letter, Qualifier=number)
        if free:
            assert function is not None
            left = {key: what for key, what in function.versions.items() if key != number}
            self.known[letter] = replace(function, versions=left)

    @rule(letter=NAMES)
    def delete(self, letter: str) -> None:
        self.tried(letter in self.known, "delete_function", letter)
        self.known.pop(letter, None)

    @rule(letter=NAMES, alias=ALIASES, number=NUMBERS, other=st.none() | NUMBERS, new=st.booleans())
    def put_alias(self, letter: str, alias: str, number: str, other: str | None, new: bool) -> None:
        function = self.known.get(letter, Function(("", 0)))
        weights = {} if other is None else {other: 0.5}
        works = (
            number in function.versions
            and (alias in function.aliases) != new
            and (other is None or (other in function.versions and other != number))
        )
        operation = "create_alias" if new else "update_alias"
        routing = {"AdditionalVersionWeights": weights}
        asked = {"Name": alias, "FunctionVersion": number, "RoutingConfig": routing}
        self.tried(works, operation, letter, **asked)
        if works:
            aliases = {**function.aliases, alias: Alias(number, weights)}
            self.known[letter] = replace(function, aliases=aliases)

    @rule(letter=NAMES, alias=ALIASES)
    def delete_alias(self, letter: str, alias: str) -> None:
        function = self.known.get(letter)
        self.tried(function is not None, "delete_alias", letter, Name=alias)
        if function is not None:
            left = {key: one for key, one in function.aliases.items() if key != alias}
            self.known[letter] = replace(function, aliases=left)

    @invariant()
    def lists_tell(self) -> None:
        client = self.api.client
        listed = client.list_functions(FunctionVersion="ALL")["Functions"]
        assert [(one["FunctionName"], one["Version"]) for one in listed] == [
            (self.name(letter), number)
            for letter, function in sorted(self.known.items())
            for number in ("$LATEST", *sorted(function.versions))
        ]

    @invariant()
    def what_runs_is_what_was_published(self) -> None:
        functions = self.api.behind.functions
        for letter, function in self.known.items():
            name = self.name(letter)
            for number, what in (("$LATEST", function.latest), *function.versions.items()):
                found = functions.resolve(name, number)
                code = (found.code / "index.py").read_text()
                assert (found.description, code) == (what[0], f"# {what[1]}")
            for alias, leads in function.aliases.items():
                found = functions.resolve(name, alias)
                assert leads.leads_to(found.version)


def test_any_order_of_operations(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        run_state_machine_as_test(lambda: Machine(api), settings=effort(2, 25))
