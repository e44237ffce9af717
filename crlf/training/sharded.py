"""Weights of which each of several processes holds a part: torch's FSDP2.

Every parameter is a DTensor, which behaves as the whole tensor and holds a part of it; so are its gradient and the
optimizer's moments. While a block of layers is computed, forward or backward, its weights are gathered.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from crlf.errors import first_line
from crlf.methods.base import Method
from crlf.optim import whole
from crlf.runtime import distributed
from crlf.runtime.sharing import share_of
from crlf.training.engines import Engine, Whole


class Shards(Engine):
    """Several processes, each with a part of every weight: torch's FSDP2.

    The parameters of the method are replaced, and so are those of its optimizers.
    """

    def __init__(self, method: Method, batch: int, optimizers: Sequence[torch.optim.Optimizer]):
        super().__init__(method)
        # An operation in place on a view would lose a hook; there is none on projections.
        warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
        self.share = share_of(batch)
        self.copy = copy.deepcopy(method) if distributed.rank() == 0 else None  # to be filled with gathered weights
        for parameter in method.parameters():  # FSDP2 takes no weights of convolutions in channels-last order
            parameter.data = parameter.data.contiguous()
        before = dict(method.named_parameters())
        mesh = init_device_mesh(next(method.parameters()).device.type, (distributed.world(),))
        for block in blocks(method):
            fully_shard(block, mesh=mesh)
        self.sharded = fully_shard(method, mesh=mesh)
        register_fsdp_forward_method(method, "project")
        for module in method.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no sum of scaled values
        after = dict(method.named_parameters())
        for optimizer in optimizers:
            hold(optimizer, {old: after[name] for name, old in before.items()})

    @contextlib.contextmanager
    def part(self, last: bool = True) -> Iterator[None]:
        self.sharded.set_requires_gradient_sync(last)
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.distributed.DistBackendError) or "gloo" in str(error):
                raise distributed.Unanswered(first_line(error)) from error
            raise

    def plain(self) -> Method:
        weights = gathered(self.method.state_dict())
        if self.copy is None:
            return self.method
        self.copy.load_state_dict(weights)
        return self.copy

    def whole(self, optimizers: Sequence[torch.optim.Optimizer]) -> Whole:
        found = super().whole(optimizers)
        return Whole(gathered(found.method), [gathered(state) for state in found.optimizers])


def blocks(method: Method) -> list[nn.Module]:
    """The blocks of an encoder and of its targets, such as the layers of a ViT or the residual blocks of a ResNet: the
    outermost modules of a class that is there more than once and has modules of its own."""
    count = Counter(type(module) for module in method.encoder.modules() if any(True for _ in module.children()))
    repeated = tuple(kind for kind, times in count.items() if times > 1 and kind not in (nn.Sequential, nn.ModuleList))
    found: dict[str, nn.Module] = {}
    for name, module in method.named_modules():  # outer ones come first
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if repeated and isinstance(module, repeated) and not inside:
            found[name] = module
    return list(found.values())


def hold(optimizer: torch.optim.Optimizer, new: dict[Tensor, nn.Parameter]) -> None:
    """Let an optimizer hold sharded parameters in the place of whole ones, with its moments for them."""
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    before = dict(optimizer.state)
    optimizer.state.clear()
    for p, state in before.items():
        optimizer.state[new[p]] = {key: sharded_as(value, new[p]) for key, value in state.items()}


def sharded_as(value: Any, parameter: nn.Parameter) -> Any:
    """A tensor of the shape of a sharded parameter, sharded as it is; anything else is returned unchanged."""
    assert isinstance(parameter, DTensor)
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def gathered(value: Any) -> Any:
    """A state dict with the whole of each sharded tensor, on the CPU. Every process must call this."""
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    return whole(value).cpu() if isinstance(value, Tensor) else value
