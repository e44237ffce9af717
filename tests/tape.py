"""A CUDA graph, imitated on the CPU: operators are recorded with the tensors that they read and wrote, and replayed on
the same memory, with the same numbers in the place of whatever Python computed. What a real graph would get wrong,
a learning rate that stays, a buffer that moves, goes wrong here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Tape(TorchDispatchMode):
    """As crlf.training.graphs.CudaGraph, but what is recorded is also done: `record` sets it back afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by address: the tensor, and what it held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            unsaid = argument.name.startswith("running_")  # native_batch_norm writes them, and its schema is silent
            if unsaid or (argument.alias_info and argument.alias_info.is_write):
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor):
                        self.written.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    def record(self, function: Callable[[], Any]) -> Any:
        with self:
            found = function()
        for tensor, before in reversed(list(self.written.values())):
            tensor.detach().copy_(before)  # a recording does nothing
        return found

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, old in self.calls:
                new = func(*args, **kwargs)
                fresh = not any(r.alias_info for r in func._schema.returns)  # else it is the memory that it was
                if fresh:
                    tree_map(lambda a, b: a.copy_(b) if isinstance(a, torch.Tensor) else None, old, new)
