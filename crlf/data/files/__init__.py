"""Images of one's own."""
