"""Owns which files of a function's layers are external extensions (SPEC 6.1)."""

from __future__ import annotations

import os
from pathlib import Path

from rootfs.trees import LayerProblem

FOLDER = "/opt/extensions"
"""Where they are, inside."""
DISABLED = "disable-extensions-jwigqn8j"
"""A file of this name in /opt, and there are none: AWS's own marker."""
MOST_LISTED = 11
"""One more than there may be."""


class ExtensionProblem(LayerProblem):
    """Something of a layer cannot be an extension as it is."""


def external(opt: Path | None) -> tuple[str, ...]:
    """Their names in the order of their launch, MOST_LISTED at most. `opt`: the host's folder of /opt.

    Everything directly in `extensions` that is no folder. Raises ExtensionProblem or OSError. Blocks.
    """
    if opt is None:
        return ()
    try:
        found = list(os.scandir(opt / "extensions"))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    names = sorted(entry.name for entry in found if not entry.is_dir(follow_symlinks=False))
    if not names or os.path.lexists(opt / DISABLED):
        return ()
    for name in names:
        if not name.isprintable():
            raise ExtensionProblem(
                f"extensions/{name!a} cannot be the name of an extension. Hint: rename it"
            )
    return tuple(names[:MOST_LISTED])
