"""Owns which function answers which operation of the Lambda API.

What is in botocore's model and not in this table is answered with 501 (`face.py`); docs/api.md is made from both.
"""

from __future__ import annotations

from runtimeapi.control import (
    absent,
    account,
    aliases,
    concurrency,
    eventinvoke,
    functions,
    layerpolicies,
    layers,
    management,
    mappings,
    policy,
    provisioned,
    tags,
    updates,
    urls,
    versions,
)
from runtimeapi.control.control import Operation

OPERATIONS: dict[str, Operation] = {
    **functions.OPERATIONS,
    **updates.OPERATIONS,
    **versions.OPERATIONS,
    **aliases.OPERATIONS,
    **concurrency.OPERATIONS,
    **eventinvoke.OPERATIONS,
    **provisioned.OPERATIONS,
    **account.OPERATIONS,
    **policy.OPERATIONS,
    **tags.OPERATIONS,
    **management.OPERATIONS,
    **layers.OPERATIONS,
    **layerpolicies.OPERATIONS,
    **mappings.OPERATIONS,
    **absent.OPERATIONS,
    **urls.OPERATIONS,
}
