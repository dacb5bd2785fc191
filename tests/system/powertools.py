"""aws-lambda-powertools for functions under test: a layer, copied out of the tests' own packages."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("aws_lambda_powertools", "jmespath")
MODULES = ("typing_extensions",)


def layer(folder: Path) -> Path:
    """A layer with it, made in `folder`."""
    place = folder / "powertools" / "python"
    for name in PACKAGES:
        shutil.copytree(_origin(name).parent, place / name, ignore=_compiled)
    for name in MODULES:
        shutil.copy(_origin(name), place)
    return place.parent


_compiled = shutil.ignore_patterns("__pycache__")


def _origin(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)
