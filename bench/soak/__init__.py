"""What lambox withstands: random load, kills, reloads and hogs, with every request accounted for.

`python -m bench.soak --help`. Knows lambox by its public faces only: `lambox serve`, HTTP, its log, /proc.
"""
