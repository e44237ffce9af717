"""Matches the tensors of trained weights with those of an encoder, by name or by order and shape.

By name, a common prefix (`module.`, `encoder.`, `backbone.`) is ignored. A first convolution with other channels and
position embeddings of another grid are adapted as timm does it. Tensors that the encoder does not use, such as a
classifier, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from crlf.encoders import InitSettings
from crlf.errors import InputError
from crlf.training.weights.sources import Weights

COUNTER = "num_batches_tracked"  # of a batch norm; many files lack it, and it has no effect here
SHOWN = 3  # names in a message


@dataclass(frozen=True, kw_only=True)
class Match:
    """How trained weights fit an encoder."""

    taken: dict[str, Tensor]
    """The matching tensors, by the encoder's names and in its shapes."""
    missing: list[str]
    """Tensors of the encoder that the weights lack, or have in a shape that does not fit."""
    left: list[str]
    """Tensors of the weights that the encoder does not use."""
    adapted: list[str]
    """Tensors taken after their shape was changed."""

    def __str__(self) -> str:
        whole = len(self.taken) + len(self.missing)
        parts = [f"{len(self.taken)} of the encoder's {whole} tensors"]
        if self.adapted:
            parts.append(f"adapted: {listed(self.adapted)}")
        if self.missing:
            parts.append(f"random: {listed(self.missing)}")
        if self.left:
            parts.append(f"not used: {listed(self.left)}")
        return "; ".join(parts)


def load(encoder: nn.Module, weights: Weights, asked: InitSettings) -> Match:
    """Load trained weights into an encoder, in place.

    Raises:
        InputError: the weights are of another network, or fit a part of it only and `partial_init` is not set.
    """
    found = (by_order if asked.match == "order" else by_name)(encoder, weights)
    if found.missing and not (asked.partial_init and found.taken):
        raise InputError(stranger(encoder, weights, found))
    encoder.load_state_dict(found.taken, strict=False)
    return found


def own_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.state_dict().items() if not name.endswith(COUNTER)}


def by_name(encoder: nn.Module, weights: Weights) -> Match:
    own = own_tensors(encoder)
    given = filtered(encoder, stripped(own, weights.tensors))
    taken: dict[str, Tensor] = {}
    adapted = []
    for name, here in own.items():
        if name not in given:
            continue
        value = given[name] if given[name].shape == here.shape else fitted(encoder, name, given[name], here)
        if value is not None:
            taken[name] = value
            if value is not given[name]:
                adapted.append(name)
    left = [name for name in given if name not in own and not name.endswith(COUNTER)]
    return Match(taken=taken, missing=[name for name in own if name not in taken], left=left, adapted=adapted)


def by_order(encoder: nn.Module, weights: Weights) -> Match:
    """Match the tensors in their order for as long as shapes agree, leaving out the counters of batch norms."""
    if not weights.in_order:
        why = "this file sorts its tensors by name"
        raise InputError(f"weights {weights.source!r} must be a .pth file for match 'order': {why}")
    own = own_tensors(encoder)
    given = [(name, value) for name, value in weights.tensors.items() if not name.endswith(COUNTER)]
    taken: dict[str, Tensor] = {}
    adapted = []
    for (name, here), (_, there) in zip(own.items(), given, strict=False):
        value = there if there.shape == here.shape else fitted(encoder, name, there, here)
        if value is None:
            break
        taken[name] = value
        if value is not there:
            adapted.append(name)
    missing = [name for name in own if name not in taken]
    return Match(taken=taken, missing=missing, left=[name for name, _ in given[len(taken) :]], adapted=adapted)


def stripped(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without their common prefix: the one that lets most names match the encoder's."""
    starts = {start for name in given for start in starts_of(name)}
    best = max(starts, key=lambda start: (sum(start + name in given for name in own), -len(start)))
    return {name.removeprefix(best): value for name, value in given.items() if name.startswith(best)}


def starts_of(name: str) -> list[str]:
    """ "a.b.c" -> "", "a.", "a.b." """
    parts = name.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def filtered(encoder: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as named and shaped by timm's checkpoint filter for this network, if it has one."""
    module = type(encoder).__module__
    reader = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if reader is None:
        return given
    try:
        found: dict[str, Tensor] = reader(dict(given), encoder)
    except (KeyError, RuntimeError, AttributeError, IndexError, TypeError):  # the filter expects another format
        return given
    own = own_tensors(encoder)
    return found if sum(name in found for name in own) >= sum(name in given for name in own) else given


def fitted(encoder: nn.Module, name: str, there: Tensor, here: Tensor) -> Tensor | None:
    """A tensor adapted to the encoder's shape, or None if it cannot be."""
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    if name.endswith("pos_embed") and there.ndim == here.ndim == 3 and there.shape[2] == here.shape[2]:
        grid: Any = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
        if grid is not None:
            extra = getattr(encoder, "num_prefix_tokens", 1)
            resized: Tensor = resample_abs_pos_embed(there, list(grid), num_prefix_tokens=extra)
            return resized if resized.shape == here.shape else None
    first = next((own for own, p in encoder.named_parameters() if p.ndim == 4), "")
    if name == first and there.ndim == 4 and there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]:
        if there.shape[1] == 3:
            adapted: Tensor = adapt_input_conv(here.shape[1], there)
            return adapted
        if here.shape[1] == 3 and there.shape[1] == 1:
            return there.repeat(1, 3, 1, 1) / 3
    return None


def stranger(encoder: nn.Module, weights: Weights, found: Match) -> str:
    """The error message that says what does not fit."""
    own, whole = own_tensors(encoder), len(found.taken) + len(found.missing)
    name = found.missing[0]
    there = stripped(own, weights.tensors).get(name)
    if there is not None:
        first = f"{name!r} is {tuple(there.shape)} in the weights and {tuple(own[name].shape)} in the encoder"
    else:
        instead = f" (they have {listed(found.left)})" if found.left else ""
        first = f"they lack {listed(found.missing)}{instead}"
    advice = "--partial-init loads what fits" if found.taken else "--match order goes by order and shape"
    return f"weights {weights.source!r} fit {len(found.taken)} of the encoder's {whole} tensors: {first} ({advice})"


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
