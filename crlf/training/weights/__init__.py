"""Trained weights: reads them from their sources and loads them into an encoder."""
