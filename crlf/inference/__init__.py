"""Uses a trained encoder on new images."""
