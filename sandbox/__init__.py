"""The supervisor: launches, schedules, freezes, kills and reaps execution environments; knows no HTTP."""
