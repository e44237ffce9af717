"""Exports trained encoders and classifiers for other programs."""
