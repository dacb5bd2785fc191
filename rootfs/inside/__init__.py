"""Programs that run inside an environment; nothing here is imported by lambox."""
