"""One confined process tree; knows nothing of Lambda."""
