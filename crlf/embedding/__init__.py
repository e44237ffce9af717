"""From a trained encoder and images to a table of embeddings."""
