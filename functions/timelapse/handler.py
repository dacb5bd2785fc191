"""A time-lapse encoder that keeps its tail in memory between invocations.

Every event brings frames; they are held as differences to the one before, and every GROUP of them
is flushed as one compressed chunk. What is not flushed yet, and the last frame, live in this
module: state that a fresh environment would not have. /tmp keeps this environment's chunks.

    {"pixels": [..]}    a frame        {"generate": 5}   that many made-up ones      {"flush": true}
"""

import pathlib
import time
import zlib

GROUP = 4
WIDTH = 64 * 48

folder = pathlib.Path("/tmp/timelapse")
previous = bytes(WIDTH)
tail = []
frames = chunks = stored = 0


def encode(frame):
    """Take one frame in; a chunk is written when the group is full."""
    global previous, frames
    tail.append(bytes((new - old) & 0xFF for new, old in zip(frame, previous, strict=True)))
    previous = frame
    frames += 1
    if len(tail) >= GROUP:
        flush()


def flush():
    global chunks, stored
    if not tail:
        return
    folder.mkdir(exist_ok=True)
    chunk = zlib.compress(b"".join(tail), 6)
    (folder / f"{chunks:06}.z").write_bytes(chunk)
    tail.clear()
    chunks += 1
    stored += len(chunk)
    print(f"flushed chunk {chunks} ({len(chunk)} bytes)")


def made_up(number):
    """A gradient that moves one pixel per frame."""
    return bytes((x + number) & 0xFF for x in range(WIDTH))


def handler(event, context):
    started = time.perf_counter()
    if "pixels" in event:
        encode(bytes(event["pixels"][:WIDTH]).ljust(WIDTH, b"\0"))
    for _ in range(int(event.get("generate", 0))):
        encode(made_up(frames))
    if event.get("flush"):
        flush()
    return {
        "frames": frames,
        "waiting": len(tail),
        "chunks": chunks,
        "bytes": stored,
        "ratio": round(frames * WIDTH / stored, 1) if stored else None,
        "encode_ms": round((time.perf_counter() - started) * 1000, 2),
    }
