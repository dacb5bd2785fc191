"""Owns event sources: queues that are polled, and what their messages become.

`filters.py`   FilterCriteria: which messages a function wants
`batches.py`   messages -> the event of one invocation; its result -> which messages were done
`poller.py`    one queue for one function, until it is told to stop
`sources.py`   all event source mappings of the registry: which are polled, and their states
"""
