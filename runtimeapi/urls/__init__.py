"""Owns function URLs: HTTP requests to a function's own address, as payload format 2.0 (SPEC 9).

`names.py`     which Host and path name a function URL, and the address that callers are told; pure
`directory.py` URL id -> function, qualifier and configuration: from the registry and from function.toml
`access.py`    who may call: resource policies, signatures, pages in browsers
`cors.py`      preflights and Access-Control-* headers; pure
`event.py`     a request -> the event; pure
`answer.py`    what a handler returned -> status, headers, body; pure
`prelude.py`   the head of a streamed response, split at any byte; pure
`stream.py`    a response while it is being streamed
`face.py`      the way of one request through all of them

The operations that configure them are `runtimeapi/control/urls.py`.
"""
