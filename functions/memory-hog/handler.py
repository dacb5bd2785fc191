"""Takes as much memory as the event says, touching every page of it. Its limit is 128 MB."""

MB = 1024 * 1024
PAGE = 4096


def handler(event, context):
    megabytes = int(event.get("megabytes", 256))
    print(f"taking {megabytes} MB of {context.memory_limit_in_mb} MB")
    taken = bytearray(megabytes * MB)
    for page in range(0, len(taken), PAGE):
        taken[page] = 1
    return {"megabytes": megabytes}
