"""Photographs in packages of public registries: does CRLF's training pay there, and against what? See `main`."""
