"""Owns the escape suite: what a hostile handler tries (`attempts`), tried in every kind of sandbox (`variants`).

`make escape` prints attempt x variant -> what came of it; tests/system/test_escape.py holds it to the list.
"""
