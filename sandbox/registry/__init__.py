"""Owns what callers have configured through the Lambda API, and keeps it on disk.

`records.py`   the values: functions with their versions and aliases, layers, event source mappings
`database.py`  the rows in SQLite: a commit is all or nothing
`soundness.py` whether what is on disk is a record at all
`registry.py`  all records in memory, changed one edit at a time
`resolving.py` a name and a qualifier -> the FunctionVersion that runs, folders' functions included
"""
