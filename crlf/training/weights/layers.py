"""The layers of an encoder, first to last: freezing them, and learning rates by layer."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from crlf.errors import InputError

T = TypeVar("T")


def layers_of(encoder: nn.Module) -> list[list[str]]:
    """The names of the parameters of each layer, from the input on.

    timm's models define their layers. A ResNet has a stem and four stages, the light CNN four stages. A parameter
    outside of these, such as that of a last norm, belongs to the layer before it.
    """
    if callable(getattr(encoder, "group_matcher", None)):
        from timm.models import group_parameters

        groups: Mapping[int, list[str]] = group_parameters(encoder, encoder.group_matcher(coarse=False))  # type: ignore[operator]
        return [groups[key] for key in sorted(groups)]
    found: dict[int, list[str]] = {}
    last = 0
    for name, _ in encoder.named_parameters():
        stage = re.match(r"(?:stages\.|layer)(\d+)\.", name)
        last = int(stage[1]) if stage else last
        found.setdefault(last, []).append(name)
    return [found[key] for key in sorted(found)]


def freeze(encoder: nn.Module, count: int, keep_norm: bool = False) -> None:
    """Freeze the first layers: no gradients, and batch norms that use their running statistics without updating them.

    Args:
        encoder: changed in place.
        count: the number of layers; a negative number -n freezes all but n.
        keep_norm: whether the other batch norms keep their running statistics too.

    Raises:
        InputError: the encoder has fewer layers.
    """
    layers = layers_of(encoder) if count else []
    if abs(count) > len(layers):
        raise InputError(f"freeze must be in -{len(layers)}..{len(layers)}, the encoder's layers, not {count}")
    frozen = {name for layer in layers[:count] for name in layer}
    for name, parameter in encoder.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for prefix, module in encoder.named_modules():
        own = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)]
        whole = keep_norm or (own and set(own) <= frozen)
        if whole and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.train = types.MethodType(stay, module)  # type: ignore[method-assign]
            module.eval()


def stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """A `Module.train` that keeps the module in evaluation mode."""
    return nn.Module.train(module, False)


def slow(optimizers: Iterable[torch.optim.Optimizer], encoder: nn.Module, decay: float) -> None:
    """Multiply the learning rate of each layer by `decay` per layer after it (Clark et al. 2020, ELECTRA, appendix A).

    Args:
        optimizers: before their first step; each group has a `base_lr`.
    """
    layers, named = layers_of(encoder), dict(encoder.named_parameters())
    factors = {id(named[name]): decay ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for name in layer}
    for optimizer in optimizers:
        optimizer.param_groups = [
            {**group, "base_lr": group["base_lr"] * factor}
            for group, factor in apart(optimizer, lambda parameter: factors.get(id(parameter), 1.0))
        ]


def begin_late(optimizers: Iterable[torch.optim.Optimizer], encoder: nn.Module) -> None:
    """Mark the encoder's parameters as ones that start to learn after the head (crlf.optim.set_rates).

    The gradients of a random head would distort trained weights (Kumar et al. 2022, Fine-tuning can distort pretrained
    features and underperform out-of-distribution, arXiv 2202.10054).

    Args:
        optimizers: before their first step.
    """
    own = {id(parameter) for parameter in encoder.parameters()}
    for optimizer in optimizers:
        optimizer.param_groups = [
            {**group, "late": late} for group, late in apart(optimizer, lambda parameter: id(parameter) in own)
        ]


def apart(optimizer: torch.optim.Optimizer, key: Callable[[nn.Parameter], T]) -> list[tuple[dict[str, Any], T]]:
    """The groups of an optimizer, split by a key of their parameters, each with its key."""
    found = []
    for group in optimizer.param_groups:
        parts: dict[T, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(key(parameter), []).append(parameter)
        found += [({**group, "params": some}, value) for value, some in parts.items()]
    return found
