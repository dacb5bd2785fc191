"""Every HTTP face: the Runtime API towards environments, the Invoke API towards callers."""
