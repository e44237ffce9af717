"""A model in an ONNX file as a frozen encoder. onnxruntime runs it on the CPU, and it cannot be trained.

The bytes of the file are stored as the weights of the run, so the file is not needed later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crlf.errors import InputError, first_line, require

ONNX = "onnx:"  # before the path, where an encoder is named
SUFFIX = ".onnx"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxFile(nn.Module):
    """Float (B, C, H, W) -> float32 (B, D).

    A file whose input is uint8 takes plain pixels: then x must be normalised with mean 0 and standard deviation 1.

    Args:
        path: the path of the file. If it does not exist, the encoder is empty until `load_state_dict` brings the bytes.
    """

    file: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        data = self.path.read_bytes() if self.path.is_file() else b""
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device
        self.register_buffer("file", torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else no_bytes())
        self.made: Any = None  # onnxruntime's session

    @property
    def session(self) -> Any:
        """onnxruntime's session, made at first use.

        Raises:
            InputError: there are no bytes, they hold no model, or the model does not take images.
        """
        if self.made is None:
            if not len(self.file):
                raise InputError(f"encoder {ONNX + str(self.path)!r} does not exist")
            self.made = opened(self.file.cpu().numpy().tobytes(), str(self.path))
        return self.made

    @property
    def pixels(self) -> bool:
        """Whether its input is uint8 pixels."""
        return bool(TYPES[self.session.get_inputs()[0].type] is np.uint8)

    @property
    def image_size(self) -> int:
        """Side of its input in pixels; 0 if it accepts several sizes."""
        height, width = self.session.get_inputs()[0].shape[2:]
        return height if isinstance(height, int) and height == width else 0

    @property
    def out_dim(self) -> int:
        """D, found by embedding an image of zeros."""
        side = self.image_size or 64
        return self(torch.zeros(1, 3, side, side, device="cpu")).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        session = self.session
        (given,) = session.get_inputs()
        kind, batch = TYPES[given.type], given.shape[0]
        array = x.detach().float().cpu().numpy()
        array = (255 * array).round().clip(0, 255) if kind is np.uint8 else array
        each = batch if isinstance(batch, int) else max(1, len(array))
        rows = []
        for first in range(0, len(array), each):
            part = array[first : first + each]
            short = each - len(part)  # a file with a fixed batch size needs full batches
            full = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short and batch == each else part
            try:
                found = session.run(None, {given.name: full.astype(kind)})[0]
            except Exception as error:  # onnxruntime's own kinds
                raise InputError(f"{self.path.name} does not accept {x.shape[2]} × {x.shape[3]} px") from error
            rows.append(np.asarray(found)[: len(part)])
        whole = np.concatenate(rows).astype(np.float32)
        return torch.from_numpy(whole.reshape(len(whole), -1)).to(x.device)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        data = state.get(f"{prefix}file")
        if isinstance(data, Tensor):
            self.file, self.made = torch.empty_like(data), None  # bytes of any number
        super()._load_from_state_dict(state, prefix, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "made": None}  # a session cannot be copied


def no_bytes() -> Tensor:
    return torch.zeros(0, dtype=torch.uint8)


def opened(data: bytes, name: str) -> Any:
    """onnxruntime's session for a model whose only input is a batch of images.

    Raises:
        InputError: the bytes hold no such model.
    """
    require(f"a model in {SUFFIX}", "onnx", "onnxruntime")
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds
        raise InputError(f"weights {name!r} are not an ONNX model: {first_line(error)}") from error
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or inputs[0].type not in TYPES or (isinstance(shape[1], int) and shape[1] not in (1, 3)):
        told = "; ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
        raise InputError(f"weights {name!r} must take one batch of images (B, 3, H, W), float or uint8, not {told}")
    return session
