"""Exports a frozen encoder or a classifier as a timm model."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crlf import encoders
from crlf.embedding.embed import protocol
from crlf.encoders import EmbeddingSettings
from crlf.encoders.onnx_file import ONNX
from crlf.errors import InputError
from crlf.evaluation.classifier import Classifier
from crlf.exporters.source import Exported, FromPixels, Source, code, statistics
from crlf.recipe import Recipe
from crlf.runs.files import write_json

PLAIN = EmbeddingSettings(regions=1, mirror=False)
ENLARGE = 4  # the stride of timm's stem, see `small_stem`


def to_timm(source: Source, folder: Path) -> Exported:
    """Write model.safetensors and config.json, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    timm's models pool over the whole image and do not use the mirror image, so an encoder is exported without regions
    and mirror image. A classifier needs the embedding that its layer was fitted on: with regions the export is refused,
    and the mirror image is added in the code.
    """
    from safetensors.torch import save_file

    recipe, channels = source.recipe, source.shape[0]
    if source.classes:
        require_whole(recipe)
    else:
        recipe = dataclasses.replace(recipe, embedding=PLAIN)
    module = FromPixels(source.network(recipe), recipe, channels)
    head = module.network.head if isinstance(module.network, Classifier) else None
    model, enlarge = timms(recipe.encoder, module.network.encoder, channels, head)
    config = timm_config(model, source, enlarge)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    imports = "import timm\nimport torch" + "\nimport torch.nn.functional as F" * (enlarge > 1)
    load = """model = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))"""
    body = timm_body(enlarge, recipe.embedding.mirror, bool(source.classes))
    made = code(source, module, imports, load, 'model.pretrained_cfg["label_names"]', body)
    notes = timm_notes(config, source, enlarge)
    return Exported(module, made, protocol(recipe), "timm", "'timm>=1.0.16' numpy", notes)


def require_whole(recipe: Recipe) -> None:
    """Raise InputError if the classifier uses regions."""
    n = recipe.embedding.regions
    if n > 1 and encoders.has_regions(recipe.encoder):
        raise InputError(
            f"a classifier of {n} x {n} regions is not one that timm can build: --format onnx and --format torch take "
            "it, and one of a run with --regions 1 can go to timm"
        )


def timm_body(enlarge: int, mirror: bool, classes: bool) -> str:
    """The body of the function of `images` that calls timm's model."""
    lines = ["x = torch.from_numpy(images) / 255"]
    if enlarge > 1:
        lines.append(
            f"x = F.interpolate(x, scale_factor={enlarge})  # each pixel {enlarge} × {enlarge} times, see below"
        )
    if not classes:
        lines += ["with torch.no_grad():", "    return model((x - mean) / std).numpy()"]
    elif not mirror:
        lines += ["with torch.no_grad():", "    return model((x - mean) / std).softmax(dim=1).numpy()"]
    else:
        lines += ["x = (x - mean) / std", "with torch.no_grad():", "    logits = (model(x) + model(x.flip(3))) / 2"]
        lines += ["return logits.softmax(dim=1).numpy()"]
    return "\n".join(f"    {line}" for line in lines)


def timms(name: str, encoder: nn.Module, channels: int, head: nn.Linear | None) -> tuple[nn.Module, int]:
    """A timm model with the same output as the encoder, with the layer of a classifier if there is one, and the factor
    by which images are enlarged for it.

    Raises:
        InputError: timm has no such model.
    """
    if hasattr(encoder, "made_with"):
        return with_head(copy.deepcopy(encoder), head), 1
    if not name.startswith("resnet"):
        forms = "--format onnx copies it" if name.startswith(ONNX) else "--format onnx and --format torch take it"
        raise InputError(f"encoder {name!r} is not one that timm can build: {forms}")
    small = isinstance(encoder.maxpool, nn.Identity)
    model = encoders.create(name, channels, **({"replace_stem_pool": True} if small else {}))
    weights = encoder.state_dict()
    model.load_state_dict(small_stem(weights) if small else weights)
    return with_head(model, head).eval(), ENLARGE if small else 1


def with_head(model: Any, head: nn.Linear | None) -> Any:
    """A timm model with this layer as its classifier.

    Raises:
        InputError: its classifier is not a linear layer on the embedding.
    """
    if head is None:
        return model
    model.reset_classifier(len(head.weight))
    own = model.get_classifier()
    if not isinstance(own, nn.Linear) or own.weight.shape != head.weight.shape:
        kind = model.made_with["architecture"]
        raise InputError(f"timm's {kind!r} has no linear classifier: --format onnx and --format torch take it")
    own.load_state_dict(head.state_dict())
    return model


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
    """The contents of config.json: how timm builds the model and prepares an image."""
    channels, height, width = source.shape
    fixed = "img_size" in model.made_with["model_args"] and not model.made_with["model_args"].get("dynamic_img_size")
    return {
        "architecture": model.made_with["architecture"],
        "num_classes": len(source.classes),
        **({"label_names": list(source.classes)} if source.classes else {}),
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
            "num_classes": len(source.classes),
            "pool_size": None,
            "first_conv": model.pretrained_cfg.get("first_conv"),
            "classifier": model.pretrained_cfg.get("classifier"),
        },
    }


def timm_notes(config: dict[str, Any], source: Source, enlarge: int) -> str:
    """Notes on how images are prepared for the model in timm."""
    height, width = source.shape[1:]
    more = "; `timm.create_model(..., num_classes=10)` puts a classifier on it" * (not source.classes)
    notes = f"In timm it is `{config['architecture']}`{more}."
    if enlarge == 1:
        return notes + " `timm.data.create_transform` with the model's own data config prepares an image."
    return notes + (
        f" The encoder keeps the resolution of its small images, and timm's stem divides it by {enlarge}. So each "
        f"pixel of a {height} × {width} image is repeated {enlarge} × {enlarge} times, and the first two convolutions "
        f"hold the original 3 × 3 one in the taps that see it so: the {source.rows} are the same. Bring an image to "
        f"{height} × {width} first, then enlarge it (nearest, as the model's data config says)."
    )
