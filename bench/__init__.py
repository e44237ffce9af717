"""Measurements: one command a claim. `python -m bench list` names them."""
