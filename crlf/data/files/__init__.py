"""Your own images."""
