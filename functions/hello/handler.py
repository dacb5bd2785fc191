"""The smallest function: an event comes in, a greeting goes out."""

import platform


def handler(event, context):
    name = event.get("name", "world") if isinstance(event, dict) else "world"
    print(f"greeting {name}")
    return {
        "greeting": f"Hello, {name}!",
        "function": context.function_name,
        "request_id": context.aws_request_id,
        "python": platform.python_version(),
    }
