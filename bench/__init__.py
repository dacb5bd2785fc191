"""How fast lambox is, beside AWS's emulator and what the host itself can do: `python -m bench --help`.

Knows lambox by its public faces only: `lambox serve`, HTTP, /proc.
"""
