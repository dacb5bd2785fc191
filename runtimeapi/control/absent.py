"""Owns the answers about what lambox has none of: code signing configs, capacity providers, durable executions.

They are AWS's where nothing was ever made of the kind: empty lists, 404s by name, and removals that find nothing.
What would make one is not supported (501, `face.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from runtimeapi.control.control import Control, Operation, missing, not_found
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import resolved
from runtimeapi.control.rendering import Output
from runtimeapi.control.tags import absent
from sandbox.errors import InvalidRequest

# -- code signing


async def list_code_signing_configs(control: Control, given: Input) -> Output:
    return {"CodeSigningConfigs": []}


async def get_function_code_signing_config(control: Control, given: Input) -> Output:
    control.record(control.ref(given["FunctionName"]))
    return {}


async def put_function_code_signing_config(control: Control, given: Input) -> Output:
    """AWS looks for the configuration first, and there is none."""
    control.ref(given["FunctionName"])
    raise InvalidRequest(
        "The code signing configuration cannot be found. Check that the provided configuration is not "
        f"deleted: {given['CodeSigningConfigArn']}.",
        code="CodeSigningConfigNotFoundException",
        status=404,
    )


def _no_code_signing_config(control: Control, given: Input) -> Exception:
    return absent("code-signing-config", given["CodeSigningConfigArn"])


# -- capacity providers


async def list_capacity_providers(control: Control, given: Input) -> Output:
    return {"CapacityProviders": []}


def _no_capacity_provider(control: Control, given: Input) -> Exception:
    name: str = given["CapacityProviderName"]
    arn = f"arn:aws:lambda:{control.region}:{control.account}:capacity-provider:{name}"
    return absent("capacity-provider", name if name.startswith("arn:") else arn)


async def get_function_scaling_config(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given["Qualifier"])
    record = control.record(ref)
    if ref.qualifier not in record.versions:
        raise not_found(ref)
    return {"FunctionArn": ref.invoked_arn}


# -- durable executions


async def list_durable_executions_by_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    resolved(control.record(ref), ref)
    return {"DurableExecutions": []}


def _no_durable_execution(control: Control, given: Input) -> Exception:
    return missing(f"Durable execution not found: {given['DurableExecutionArn']}")


def _finds_nothing(why: Callable[[Control, Input], Exception]) -> Operation:
    async def operation(control: Control, given: Input) -> Output:
        raise why(control, given)

    return operation


async def delete_function_code_signing_config(control: Control, given: Input) -> Output:
    control.record(control.ref(given["FunctionName"]))
    return {}


EMPTY: dict[str, Operation] = {
    "ListCodeSigningConfigs": list_code_signing_configs,
    "GetFunctionCodeSigningConfig": get_function_code_signing_config,
    "DeleteFunctionCodeSigningConfig": delete_function_code_signing_config,
    "ListCapacityProviders": list_capacity_providers,
    "GetFunctionScalingConfig": get_function_scaling_config,
    "ListDurableExecutionsByFunction": list_durable_executions_by_function,
}
"""They answer that there is none."""
NOTHING_THERE: dict[str, Operation] = {
    "PutFunctionCodeSigningConfig": put_function_code_signing_config,
    "GetCodeSigningConfig": _finds_nothing(_no_code_signing_config),
    "UpdateCodeSigningConfig": _finds_nothing(_no_code_signing_config),
    "DeleteCodeSigningConfig": _finds_nothing(_no_code_signing_config),
    "ListFunctionsByCodeSigningConfig": _finds_nothing(_no_code_signing_config),
    "GetCapacityProvider": _finds_nothing(_no_capacity_provider),
    "UpdateCapacityProvider": _finds_nothing(_no_capacity_provider),
    "DeleteCapacityProvider": _finds_nothing(_no_capacity_provider),
    "ListFunctionVersionsByCapacityProvider": _finds_nothing(_no_capacity_provider),
    "GetDurableExecution": _finds_nothing(_no_durable_execution),
    "GetDurableExecutionHistory": _finds_nothing(_no_durable_execution),
    "GetDurableExecutionState": _finds_nothing(_no_durable_execution),
    "StopDurableExecution": _finds_nothing(_no_durable_execution),
}
"""Each names one, and there is none: they never succeed."""
OPERATIONS = {**EMPTY, **NOTHING_THERE}
ACCEPTED = frozenset(OPERATIONS)
NOTES = {
    **dict.fromkeys(EMPTY, "There are none here: the answer is AWS's where nothing is configured."),
    **dict.fromkeys(NOTHING_THERE, "There are none here: always AWS's 404."),
}
