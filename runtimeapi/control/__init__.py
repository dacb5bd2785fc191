"""Owns the Lambda API besides Invoke: every operation of botocore's service model that is not an invocation.

`model.py`      the model: which operation a method and path name; what it takes and gives
`parsing.py`    a request -> the members of the operation's input
`constraints.py` what the model demands of them, in AWS's words
`rendering.py`  the members of an output -> status, headers, JSON
`face.py`       the way of one request through all of them; errors in AWS's shape
`control.py`    what operations work on: the registry, the stores, the engine
`operations.py` which function answers which operation: one table out of the modules below
`qualifiers.py`, `paging.py`: what many operations share
`functions.py`, `versions.py`, `aliases.py`, `layers.py`, ...: the operations, one resource each
`management.py` recursion, runtime management       `absent.py` answers about what lambox has none of

An operation is `async def name(control: Control, given: Input) -> Output`: dicts with botocore's member names.
It raises CallerError with AWS's code and message, and changes the registry in one `edit`.
"""
