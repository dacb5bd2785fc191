"""Published versions through the Lambda API (SPEC 10.2, 10.4)."""
