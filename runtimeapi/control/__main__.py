"""`python -m runtimeapi.control`: docs/api.md on stdout."""

from __future__ import annotations

import sys

from runtimeapi.control.table import page

sys.stdout.write(page())
