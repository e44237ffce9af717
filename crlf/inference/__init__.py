"""A trained encoder at work on new images."""
