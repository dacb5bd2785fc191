"""Owns measuring which system calls real runtimes and programs make: python -m bench.syscalls --help."""
