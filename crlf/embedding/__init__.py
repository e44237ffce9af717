"""Embeds images with a trained encoder and writes them as a table."""
