"""With LAMBOX_CI=1 a skipped test is a failed one, unless it is marked `optional`.

Servers under test leave this machine's network alone: those that give functions a way out do so in network
namespaces of the tests' own (tests/system/internet.py).
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.aws import aws

__all__ = ["aws"]

os.environ["LAMBOX_DEFAULT_NETWORK"] = "none"
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]  # nothing of whoever runs the tests may decide where they send things


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("LAMBOX_CI") == "1" and not item.get_closest_marker("optional"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped under LAMBOX_CI=1: {reason}"
    return report
