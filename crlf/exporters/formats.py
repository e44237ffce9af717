"""The formats in which a frozen encoder leaves CRLF: each writes files that other programs load without CRLF.

An entry of `FORMATS` is a function of a `Source` and a folder. It writes the encoder there and returns an `Exported`,
which says how the files are used, and what they must give for an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crlf import encoders
from crlf.embedding.embed import load_encoder, protocol
from crlf.encoders import EmbeddingSettings, Frozen
from crlf.errors import InputError, require
from crlf.recipe import Recipe
from crlf.runs.files import write_json
from crlf.runs.run import Run

OPSET = 18  # the oldest that torch's exporter writes by itself: runtimes of 2023 and later read it
PLAIN = EmbeddingSettings(regions=1, mirror=False)
ENLARGE = 4  # the stride of timm's stem, see `small_stem`


class Source(NamedTuple):
    """What is exported: the encoder of a run, for images of a shape (C, H, W)."""

    run: Run
    recipe: Recipe
    shape: torch.Size


class Exported(NamedTuple):
    """What a format made of an encoder."""

    module: nn.Module
    """What the files must equal: uint8 (B, C, H, W) -> float32 (B, D)."""
    code: str
    """A module that loads the files in the current folder and defines `embed`: the same on numpy arrays. It is written
    as embed.py, and the card shows it."""
    embedding: str
    """In words, what a row is."""
    library: str
    """The Hugging Face hub's name for what loads it."""
    needs: str
    """What pip installs for the code."""
    notes: str = ""
    """What else a user should know, Markdown."""


class Embedder(nn.Module):
    """Images as they are stored to embeddings: uint8 (B, C, H, W) -> float32 (B, D).

    The normalisation lies inside, so that nobody can feed pixels of another scale, and an image travels in a quarter
    of the bytes of float32. Equals `embed_images`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Frozen, recipe: Recipe, channels: int):
        super().__init__()
        self.encoder = encoder.to(memory_format=torch.contiguous_format)
        for name, values in statistics(recipe, channels).items():
            self.register_buffer(name, torch.tensor(values).view(1, channels, 1, 1).clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images.float() / 255 - self.mean) / self.std)


def statistics(recipe: Recipe, channels: int) -> dict[str, list[float]]:
    """The mean and the standard deviation of each channel, in 0..1."""
    mean, std = recipe.normalisation.numbers(channels)
    return {"mean": list(mean), "std": list(std)}


def embedder(source: Source) -> Embedder:
    """What the run's own embeddings come from."""
    return Embedder(load_encoder(source.run, source.recipe, source.shape), source.recipe, source.shape[0])


def to_onnx(source: Source, folder: Path) -> Exported:
    """Write model.onnx: images uint8 (B, C, H, W) -> embeddings float32 (B, D), for any B."""
    require("--format onnx", "onnx", "onnx", "onnxscript", "onnxruntime")
    module = embedder(source)
    path = folder / "model.onnx"
    with quiet():
        program = torch.onnx.export(
            captured(module, source.shape), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["embeddings"],
        )  # fmt: skip
        assert program is not None, "the exporter returns a program when it is given no file"
        program.save(path, external_data=False)
    code = f"""import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")


def embed(images):  # {contract(module, source)}
    return session.run(None, {{"images": images}})[0]
"""
    notes = f"ONNX opset {OPSET}; the batch size is dynamic."
    return Exported(module, code, protocol(source.recipe), "onnx", "onnxruntime numpy", notes)


def to_torch(source: Source, folder: Path) -> Exported:
    """Write model.pt2, a program of `torch.export`: images uint8 (B, C, H, W) -> float32 (B, D), for any B."""
    module = embedder(source)
    with quiet():
        torch.export.save(captured(module, source.shape), folder / "model.pt2")
    code = f"""import torch

model = torch.export.load("model.pt2").module()


def embed(images):  # {contract(module, source)}
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()
"""
    notes = f"Written by `torch.export` of torch {torch.__version__}; the batch size is dynamic."
    return Exported(module, code, protocol(source.recipe), "pytorch", "torch numpy", notes)


def captured(module: nn.Module, shape: torch.Size) -> torch.export.ExportedProgram:
    """The program of a module, for any number of images of this shape."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, *shape, dtype=torch.uint8)  # of one image, the tracer would take the batch for a constant
    return torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from talking about their own insides; an error still comes through."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def to_timm(source: Source, folder: Path) -> Exported:
    """Write model.safetensors and config.json, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    timm's models pool their maps over the whole image and know no mirror image, so this is the plain encoder.
    """
    require("--format timm", "timm", "timm", "safetensors")
    from safetensors.torch import save_file

    recipe = dataclasses.replace(source.recipe, embedding=PLAIN)
    module = Embedder(load_encoder(source.run, recipe, source.shape), recipe, source.shape[0])
    model, enlarge = timms(recipe.encoder, module.encoder.encoder, source.shape[0])
    config = timm_config(model, source, enlarge)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    step = f"    x = F.interpolate(x, scale_factor={enlarge})  # each pixel {enlarge} × {enlarge} times, see below\n"
    code = f"""import timm
import torch
import torch.nn.functional as F

model = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))


def embed(images):  # {contract(module, source)}
    x = torch.from_numpy(images) / 255
{step * (enlarge > 1)}    with torch.no_grad():
        return model((x - mean) / std).numpy()
"""
    if enlarge == 1:
        code = code.replace("import torch.nn.functional as F\n", "")
    return Exported(module, code, protocol(recipe), "timm", "'timm>=1.0.16' numpy", timm_notes(config, source, enlarge))


def timms(name: str, encoder: nn.Module, channels: int) -> tuple[nn.Module, int]:
    """timm's model that gives what the encoder gives, and the factor by which images are enlarged for it.

    Raises:
        InputError: timm has none.
    """
    if hasattr(encoder, "made_with"):
        return encoder, 1
    if not name.startswith("resnet"):
        raise InputError(f"encoder {name!r} is not one that timm can build: --format onnx and --format torch take it")
    small = isinstance(encoder.maxpool, nn.Identity)
    model = encoders.create(name, channels, **({"replace_stem_pool": True} if small else {}))
    weights = encoder.state_dict()
    model.load_state_dict(small_stem(weights) if small else weights)
    return model.eval(), ENLARGE if small else 1


def small_stem(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ResNet with the small-image stem as those of timm's usual one, for images enlarged four times.

    timm has no stem that keeps the resolution. Its stem with a convolution in place of the pool has two steps of
    stride 2, so an image whose pixels are each repeated 4 x 4 times comes out in its own size; and it can compute the
    same numbers. Of the repeated image u, u[i] = x[i // 4], the 7-tap convolution at output 2p + 1 reads
    u[4p - 1 .. 4p + 5]: its taps 0, 3 and 6 lie in x[p - 1], x[p] and x[p + 1], and the border's zeros fall outside
    as before. So the taps of the 3x3 kernel go there, and the second convolution takes every output 2p + 1 as it is:
    a one beside the centre. ReLU changes nothing that is positive already, nor does a batch norm that undoes its eps.
    The price is an eighth of a ResNet-18's operations.
    """
    kernel = weights["conv1.weight"]  # (64, C, 3, 3)
    spread = kernel.new_zeros(*kernel.shape[:2], 7, 7)
    spread[:, :, ::3, ::3] = kernel
    width = len(kernel)
    take = kernel.new_zeros(width, width, 3, 3)
    take[range(width), range(width), 2, 2] = 1
    eps = nn.BatchNorm2d(1).eps
    norm = {
        "weight": kernel.new_full((width,), (1 + eps) ** 0.5),
        "bias": kernel.new_zeros(width),
        "running_mean": kernel.new_zeros(width),
        "running_var": kernel.new_ones(width),
        "num_batches_tracked": torch.tensor(0),
    }
    stem = {"conv1.weight": spread, "maxpool.0.weight": take, **{f"maxpool.1.{k}": v for k, v in norm.items()}}
    return weights | stem


def timm_config(model: Any, source: Source, enlarge: int) -> dict[str, Any]:
    """What config.json holds: how timm builds the model, and how it prepares an image."""
    channels, height, width = source.shape
    fixed = "img_size" in model.made_with["model_args"] and not model.made_with["model_args"].get("dynamic_img_size")
    return {
        "architecture": model.made_with["architecture"],
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": model.made_with["model_args"],
        "pretrained_cfg": {
            "tag": "crlf",
            "custom_load": False,
            "input_size": [channels, height * enlarge, width * enlarge],
            "fixed_input_size": fixed,
            "interpolation": "bicubic" if enlarge == 1 else "nearest",
            "crop_pct": 1.0,
            "crop_mode": "center",
            **statistics(source.recipe, channels),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": model.pretrained_cfg.get("first_conv"),
            "classifier": model.pretrained_cfg.get("classifier"),
        },
    }


def timm_notes(config: dict[str, Any], source: Source, enlarge: int) -> str:
    """What to know of the model in timm: how images are prepared for it."""
    height, width = source.shape[1:]
    notes = (
        f"In timm it is `{config['architecture']}`; `timm.create_model(..., num_classes=10)` puts a classifier on it."
    )
    if enlarge == 1:
        return notes + " `timm.data.create_transform` with the model's own data config prepares an image."
    return notes + (
        f" The encoder keeps the resolution of its small images, and timm's stem divides it by {enlarge}. So each "
        f"pixel of a {height} × {width} image is repeated {enlarge} × {enlarge} times, and the first two convolutions "
        "hold the original 3 × 3 one in the taps that see it so: the embeddings are the same. Bring an image to "
        f"{height} × {width} first, then enlarge it (nearest, as the model's data config says)."
    )


def contract(module: nn.Module, source: Source) -> str:
    shape = ", ".join(map(str, source.shape))
    with torch.no_grad():
        width = module(torch.zeros(1, *source.shape, dtype=torch.uint8)).shape[1]
    return f"numpy uint8 (B, {shape}) -> float32 (B, {width})"


FORMATS: dict[str, Callable[[Source, Path], Exported]] = {"timm": to_timm, "onnx": to_onnx, "torch": to_torch}
