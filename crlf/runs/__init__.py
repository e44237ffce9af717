"""A run is a folder: its files, and how they are written."""
