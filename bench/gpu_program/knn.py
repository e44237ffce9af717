"""kNN where the embeddings are: on the GPU, in less than a second for CIFAR-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.metrics.knn import HEADLINE, vote
from crlf.normalisation import Normalisation, normalise
from crlf.training.monitor import evaluating


@torch.no_grad()
def embed(encoder: nn.Module, images: Tensor, by: Normalisation, batch: int = 1000) -> Tensor:
    """uint8 (N, C, H, W) on the encoder's device -> float32 (N, D) there, in evaluation mode."""
    with evaluating(encoder):
        return torch.cat([encoder(normalise(part, by)).float() for part in images.split(batch)])


def accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = HEADLINE) -> float:
    """The share of test embeddings (M, D) whose k nearest of (N, D), by cosine, vote for their label."""
    with torch.autocast(train.device.type, enabled=False):  # a look within a training is under its autocast
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
        near = torch.cat(
            [(part @ train.T).topk(min(k, len(train)), dim=1).indices for part in test.split(2000)]
        )  # (M, k)
    voted = vote(train_labels[near].cpu(), int(train_labels.max()) + 1)
    return (voted == test_labels.cpu()).double().mean().item()


def ridge(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, penalty: float = 1e-3) -> float:
    """Accuracy of least squares to one-hot labels on standardised embeddings: a linear probe in milliseconds.

    For choosing among hundreds of short runs; what is published is logistic regression.
    """
    mean, scale = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    x, z = (((rows - mean) / scale).double() for rows in (train, test))
    target = F.one_hot(train_labels).double()
    gram = x.T @ x / len(x)
    weights = torch.linalg.solve(
        gram + penalty * torch.eye(len(gram), device=x.device), x.T @ (target - target.mean(0)) / len(x)
    )
    return ((z @ weights + target.mean(0)).argmax(dim=1) == test_labels).double().mean().item()
