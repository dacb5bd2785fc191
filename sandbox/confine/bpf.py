"""Owns classic BPF as seccomp(2) takes it: chaining two programs, and what a program says of one call.

Only the instructions that libseccomp writes (linux/filter.h): 32-bit loads of struct seccomp_data, AND,
jumps, returns.
"""

from __future__ import annotations

import struct

INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter: code, jt, jf, k."""
CALL = struct.Struct("=iIQ6Q")
"""struct seccomp_data: number, AUDIT_ARCH_*, instruction pointer, six arguments."""
LD_W_ABS, ALU_AND, JA, RET = 0x20, 0x54, 0x05, 0x06
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
ALLOW, ERRNO, KILL_PROCESS, NOTIFY = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FC00000
"""SECCOMP_RET_* of linux/seccomp.h."""
ACTION, DATA = 0xFFFF0000, 0x0000FFFF
"""SECCOMP_RET_ACTION_FULL, SECCOMP_RET_DATA."""
LARGEST = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""


def chain(first: bytes, second: bytes) -> bytes:
    """One program: what `first` allows is `second`'s to judge."""
    out = bytearray()
    for at in range(0, len(first), INSTRUCTION.size):
        code, if_true, if_false, k = INSTRUCTION.unpack_from(first, at)
        if code == RET and k == ALLOW:
            code, k = JA, (len(first) - at) // INSTRUCTION.size - 1
        out += INSTRUCTION.pack(code, if_true, if_false, k)
    return bytes(out) + second


def run(program: bytes, call: bytes) -> int:
    """SECCOMP_RET_* and its data: what the kernel would do with a call (packed as CALL)."""
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = INSTRUCTION.unpack_from(program, at * INSTRUCTION.size)
        at += 1
        if code == LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", call, k)
        elif code == ALU_AND:
            accumulator &= k
        elif code == JA:
            at += k
        elif code == RET:
            return int(k)
        else:
            tests = {
                JEQ: accumulator == k,
                JGT: accumulator > k,
                JGE: accumulator >= k,
                JSET: bool(accumulator & k),
            }
            at += if_true if tests[code] else if_false
