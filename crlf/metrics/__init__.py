"""Pure functions of embeddings."""
