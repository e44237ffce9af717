"""The export formats, whose files other programs load without CRLF.

An entry of `FORMATS` is a function of a `Source` and a folder. It writes the network to the folder and returns an
`Exported`, which describes how to use the files and what their output must be. The model file of a classifier also
holds its class names.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from crlf.embedding.embed import protocol
from crlf.encoders.onnx_file import ONNX, OnnxFile
from crlf.errors import InputError, require
from crlf.exporters.in_timm import to_timm
from crlf.exporters.source import Exported, Source, code, from_pixels

OPSET = 18  # the oldest that torch's exporter writes directly; runtimes since 2023 read it
CLASSES = "classes"  # the metadata entry of the class names, as JSON, in files of ONNX and torch.export


def to_onnx(source: Source, folder: Path) -> Exported:
    """Write model.onnx: images uint8 (B, C, H, W) -> embeddings float32 (B, D), or probabilities (B, K), for any B.

    If the encoder is an ONNX file, it is copied.
    """
    require("--format onnx", "onnx", "onnx", "onnxscript", "onnxruntime")
    if source.recipe.encoder.startswith(ONNX):
        return copied(source, folder)
    module = from_pixels(source)
    with quiet():
        program = torch.onnx.export(
            captured(module, source.shape), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=[source.rows],
        )  # fmt: skip
        assert program is not None, "the exporter returns a program when it is given no file"
        if source.classes:
            program.model.metadata_props[CLASSES] = json.dumps(source.classes)
        program.save(folder / "model.onnx", external_data=False)
    made = code(
        source, module, "import onnxruntime", 'session = onnxruntime.InferenceSession("model.onnx")',
        f'json.loads(session.get_modelmeta().custom_metadata_map["{CLASSES}"])',
        '    return session.run(None, {"images": images})[0]',
    )  # fmt: skip
    notes = f"ONNX opset {OPSET}; the batch size is dynamic."
    return Exported(module, made, protocol(source.recipe), "onnx", "onnxruntime numpy", notes)


def copied(source: Source, folder: Path) -> Exported:
    """Copy the ONNX file to model.onnx.

    Raises:
        InputError: the export is a classifier, whose linear layer is not in the file.
    """
    if source.classes:
        raise InputError(
            "format must not be onnx for a classifier on an ONNX file: its linear layer is in classifier.pth"
        )
    module = from_pixels(source)
    model = next(one for one in module.modules() if isinstance(one, OnnxFile))
    (folder / "model.onnx").write_bytes(model.file.numpy().tobytes())
    name, body = model.session.get_inputs()[0].name, "images"
    if not model.pixels:
        mean, std = (
            np.array(values).reshape(1, -1, 1, 1).tolist() for values in source.recipe.normalisation.numbers(3)
        )
        body = f"((images / 255 - np.array({mean})) / np.array({std})).astype(np.float32)"
    made = code(
        source, module, "import numpy as np\nimport onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")', "",
        f'    return session.run(None, {{"{name}": {body}}})[0].reshape(len(images), -1)',
    )  # fmt: skip
    notes = "The ONNX file that was given, as it came."
    return Exported(module, made, protocol(source.recipe), "onnx", "onnxruntime numpy", notes)


def to_torch(source: Source, folder: Path) -> Exported:
    """Write model.pt2, a program of `torch.export`: uint8 (B, C, H, W) -> float32 (B, D), or (B, K), for any B.

    Raises:
        InputError: the encoder is an ONNX file.
    """
    if source.recipe.encoder.startswith(ONNX):
        raise InputError("format must be onnx for an encoder that is an ONNX file, not torch")
    module = from_pixels(source)
    beside, load = None, 'model = torch.export.load("model.pt2").module()'
    if source.classes:
        beside = {CLASSES: json.dumps(source.classes)}
        load = f"""beside = {{"{CLASSES}": ""}}
model = torch.export.load("model.pt2", extra_files=beside).module()"""
    with quiet():
        torch.export.save(captured(module, source.shape), folder / "model.pt2", extra_files=beside)
    body = """    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()"""
    made = code(source, module, "import torch", load, f'json.loads(beside["{CLASSES}"])', body)
    notes = f"Written by `torch.export` of torch {torch.__version__}; the batch size is dynamic."
    return Exported(module, made, protocol(source.recipe), "pytorch", "torch numpy", notes)


def captured(module: nn.Module, shape: torch.Size) -> torch.export.ExportedProgram:
    """The program of a module, for any number of images of this shape."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, *shape, dtype=torch.uint8)  # with one image, B would be traced as a constant
    return torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the messages and warnings of torch's exporters, but not their errors."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


FORMATS: dict[str, Callable[[Source, Path], Exported]] = {"timm": to_timm, "onnx": to_onnx, "torch": to_torch}
