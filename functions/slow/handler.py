"""Sleeps longer than its timeout: lambox kills the environment and answers for it.

The event says otherwise if it wants: {"seconds": 0.5}.
"""

import time


def handler(event, context):
    seconds = float(event.get("seconds", 30))
    print(f"sleeping {seconds:g} s, {context.get_remaining_time_in_millis()} ms are left")
    time.sleep(seconds)
    return {"slept": seconds}
