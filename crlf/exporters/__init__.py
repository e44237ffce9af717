"""A trained encoder for other programs."""
