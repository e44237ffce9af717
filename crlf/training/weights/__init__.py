"""Trained weights: where they come from, and how they fit an encoder."""
