"""What embeddings and an encoder are worth, measured with labels that pretraining never saw."""
