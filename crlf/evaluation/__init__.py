"""Evaluation of embeddings and encoders, with labels that pretraining never saw."""
