"""Shows a run: figures, report, explorer, summary."""
