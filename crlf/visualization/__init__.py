"""What a run looks like: figures, report, explorer, summary."""
