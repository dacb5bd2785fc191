"""Promises about the tree itself: sizes, import directions, names, dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lambox", "runtimeapi", "sandbox", "rootfs")
LONGEST_MODULE = 600

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"]
DEV: list[str] = PROJECT["dependency-groups"]["dev"]


def sources() -> Iterator[Path]:
    for package in (*PACKAGES, "tests", "bench"):
        yield from (ROOT / package).rglob("*.py")


def name_of(requirement: str) -> str:
    """`hypercorn` of `hypercorn==0.18.*`, as the index spells it."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def names(requirements: list[str]) -> set[str]:
    return {name_of(requirement) for requirement in requirements}


def pins(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE):
        found.setdefault(name_of(name), set()).add(version)
    return found


def test_no_module_outgrows_a_readers_patience() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE} == {}


def test_imports_point_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_put_inside_shadows_no_standard_module() -> None:
    """Environments run these folders' files with the folder on sys.path."""
    inside = (path for path in (ROOT / "rootfs" / "inside").rglob("*.py"))
    found = {str(path) for path in inside if path.stem in sys.stdlib_module_names}
    assert found == set()


def test_packages_and_their_modules_shadow_no_standard_module() -> None:
    assert not {*PACKAGES, "tests", "bench"} & (sys.stdlib_module_names - {"test"})
    modules = [path for package in ("sandbox", "rootfs") for path in (ROOT / package).rglob("*.py")]
    assert [str(path) for path in modules if path.stem in sys.stdlib_module_names] == []


def test_every_source_package_is_installed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == on_disk


@pytest.mark.parametrize(
    ("lock", "direct"),
    [("requirements.lock", names(RUNTIME)), ("requirements-dev.lock", names(RUNTIME + DEV))],
)
def test_locks_hold_every_direct_dependency(lock: str, direct: set[str]) -> None:
    assert direct - pins(ROOT / lock).keys() == set()


def test_every_locked_version_has_hashes() -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text())
        bare = [entry for entry in entries if "==" in entry and "--hash=sha256:" not in entry]
        assert bare == [], lock


def test_tests_run_on_the_versions_that_users_get() -> None:
    dev = pins(ROOT / "requirements-dev.lock")
    runtime = pins(ROOT / "requirements.lock")
    assert {name: dev.get(name) for name in runtime} == runtime


def test_functions_get_the_clients_that_the_tests_know() -> None:
    dev = pins(ROOT / "requirements-dev.lock")
    assert pins(ROOT / "rootfs" / "python-runtime.txt")["awslambdaric"] == dev["awslambdaric"]


def test_every_direct_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    explained = {name_of(name) for name in re.findall(r"^\| `([\w.-]+)`", text, re.MULTILINE)}
    assert names(RUNTIME + DEV) - explained == set()
