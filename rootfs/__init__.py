"""What an environment sees: runtimes found on the host, mount plan, layers, programs inside."""
