"""Reads trained weights from a run, a file, timm's hub client or a folder written by timm.

Files are read with `weights_only`, so no code in them runs. Wrappers left by training programs are removed: an entry
such as `state_dict` or `model`, and a common prefix of the names.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crlf.encoders import TIMM
from crlf.encoders.onnx_file import ONNX, SUFFIX, OnnxFile
from crlf.errors import InputError, first_line
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe
from crlf.runs.files import read_json
from crlf.runs.run import CLASSIFIER, CLASSIFIER_WEIGHTS, ENCODER, RECIPE, Run
from crlf.text import say

HUB, FOLDER = "hf-hub:", "local-dir:"  # as timm spells them
FORMS = f"{TIMM}NAME, {HUB}OWNER/NAME, {FOLDER}PATH, a run or classifier folder, or a .safetensors, .pth or .onnx file"
SAFE = ".safetensors"
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INSIDE = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model_state_dict", "model", "student", "net")
# Entries of a file that may hold its weights, in order of preference.
OFFLINE = {
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "URLError", "gaierror"),
    *("ConnectTimeout", "ReadTimeout", "ProxyError"),
}  # errors when the hub cannot be reached


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained weights, and what is known about them."""

    source: str
    """The source as given by the user."""
    tensors: dict[str, Tensor]
    """The tensors by name, on the CPU; floating-point ones in float32."""
    sha256: str
    """The SHA-256 of the file, or of all tensors if they come from a hub."""
    licence: str = ""
    """The licence given by their model card; empty if it gives none."""
    encoder: str = ""
    """The name of their network, as for `--encoder`; empty if not known."""
    image_size: int = 0
    """Side of the training images in pixels; 0 if not known."""
    in_order: bool = True
    """Whether the tensors are in the order of the network's modules; a .safetensors file sorts them by name."""
    normalisation: Normalisation = field(default_factory=Normalisation)
    """The mean and standard deviation they were trained with; empty if not known."""

    @property
    def origin(self) -> dict[str, Any]:
        """The entry about the weights in scores.json and in the model card."""
        known = {"source": self.source, "sha256": self.sha256, "licence": self.licence, "encoder": self.encoder}
        return {name: value for name, value in known.items() if value}


def read(source: str) -> Weights:
    """Read the weights from a source, given in one of the `FORMS`.

    Raises:
        InputError: the source does not exist, cannot be fetched, or holds no state dict.
    """
    if source.startswith((TIMM, HUB, FOLDER)):
        return of_timm(source)
    path = Path(source).expanduser()
    if (path / RECIPE).is_file():
        return of_run(source, Run(path))
    if (path / CLASSIFIER).is_file():
        return of_classifier(source, Run(path))
    if not path.is_file():
        raise InputError(f"weights {source!r} do not exist: they must be {FORMS}")
    return of_onnx(source, path) if path.suffix.lower() == SUFFIX else of_file(source, path)


def of_onnx(source: str, path: Path) -> Weights:
    """A model in an ONNX file. If it does not take plain pixels, its normalisation is assumed to be ImageNet's."""
    model = OnnxFile(path.resolve())
    side, bare = model.image_size, model.pixels
    if not bare:
        say(f"{source}: assumed to need images normalised by ImageNet's mean and deviation (--mean, --std)")
    return Weights(
        source=source,
        tensors=dict(model.state_dict()),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        encoder=ONNX + str(path.resolve()),
        image_size=side,
        normalisation=Normalisation(mean=(0.0,), std=(1.0,)) if bare else IMAGENET,
    )


def of_run(source: str, run: Run) -> Weights:
    return made_here(source, run, ENCODER, run.recipe)


def of_classifier(source: str, folder: Run) -> Weights:
    """The encoder of a classifier from `crlf finetune`, without its linear layer."""
    return made_here(
        source, folder, CLASSIFIER_WEIGHTS, Recipe.from_dict(read_json(folder.file(CLASSIFIER), dict)["recipe"])
    )


def made_here(source: str, folder: Run, name: str, recipe: Recipe) -> Weights:
    return Weights(
        source=source,
        tensors=state_dict(folder.tensors(name), source),
        sha256=hashlib.sha256(folder.file(name).read_bytes()).hexdigest(),
        encoder=recipe.encoder,
        image_size=int(recipe.images.image_size),
        normalisation=recipe.normalisation,
    )


def of_file(source: str, path: Path) -> Weights:
    try:
        data = path.read_bytes()
        values = loaded(path)
    except OSError as error:
        raise InputError(f"weights {source!r} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        more = type(error).__name__ == "UnpicklingError"
        why = "it is damaged, or holds more than tensors" if more else first_line(error)
        raise InputError(f"weights {source!r} cannot be loaded: {why}") from error
    return Weights(
        source=source,
        tensors=state_dict(values, source),
        sha256=hashlib.sha256(data).hexdigest(),
        in_order=path.suffix != SAFE,
    )


def loaded(path: Path) -> Any:
    if path.suffix == SAFE:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(first_line(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of older pickle protocols
        return torch.load(path, map_location="cpu", weights_only=True)


def state_dict(values: Any, source: str) -> dict[str, Tensor]:
    """The tensors in a loaded file, by name.

    Raises:
        InputError: the file holds no state dict, or values that are not finite.
    """
    while isinstance(values, Mapping) and not any(isinstance(value, Tensor) for value in values.values()):
        inner = [values[name] for name in INSIDE if isinstance(values.get(name), Mapping)]
        if not inner:
            break
        values = inner[0]
    found = {k: v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, Mapping) else {}
    if not found:
        held = "no named tensor" if isinstance(values, Mapping) else f"an object of type {type(values).__name__!r}"
        raise InputError(f"weights {source!r} are not a state dict: the file holds {held}")
    tensors = {str(name): value.float() if value.is_floating_point() else value for name, value in found.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"weights {source!r} hold NaN or infinite values in {name!r}")
    return tensors


# Fetched by timm


def of_timm(source: str) -> Weights:
    """timm's model with its trained weights, from the hub (through its cache) or from a folder."""
    import timm  # slow to import

    name = source.removeprefix(TIMM)
    if source.startswith(FOLDER) and not Path(name.removeprefix(FOLDER)).expanduser().is_dir():
        raise InputError(f"weights {source!r} do not exist: {FOLDER} takes a folder with config.json and weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: Any = fetched(source, lambda: timm.create_model(name, pretrained=True, num_classes=0))
    cfg = net.pretrained_cfg
    tensors = state_dict(net.state_dict(), source)
    return Weights(
        source=source,
        tensors=tensors,
        sha256=digest(tensors),
        licence=licence_of(source, cfg),
        encoder=TIMM + cfg["architecture"],
        image_size=cfg["input_size"][-1],
        normalisation=Normalisation(mean=tuple(cfg["mean"]), std=tuple(cfg["std"])),
    )


def licence_of(source: str, cfg: Mapping[str, Any]) -> str:
    """The licence in the config.json beside the weights, else in their card, README.md; for timm's models, timm's.

    The configuration that timm makes for a folder or a hub model may show the licence of another model of this network.
    """
    if source.startswith(TIMM):
        return str(cfg.get("license") or "")
    from huggingface_hub import ModelCard  # as timm does

    try:
        if config := beside(source, "config.json"):
            known = read_json(config, dict).get("license")
            if isinstance(known, str):
                return known
        card = beside(source, "README.md")
        found: Any = ModelCard(card.read_text(encoding="utf-8")).data.to_dict().get("license") if card else ""
    except (OSError, ValueError):  # a broken card gives no licence
        return ""
    return ", ".join(found) if isinstance(found, list) else str(found or "")


def beside(source: str, name: str) -> Path | None:
    """A file beside the weights, in their folder or on the hub; None if it does not exist."""
    if source.startswith(FOLDER):
        path = Path(source.removeprefix(FOLDER)).expanduser() / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    repository, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repository, name, revision=revision or None))
    except (OSError, ValueError):  # its own errors are of these kinds
        return None


def fetched(source: str, make: Callable[[], Any]) -> Any:
    """The model that `make` gets from timm.

    Raises:
        InputError: the model or its weights do not exist, or the hub cannot be reached or denies access.
    """
    try:
        return make()
    except (RuntimeError, ValueError, OSError, KeyError, AssertionError, ImportError) as error:
        raise InputError(f"weights {source!r}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The reason of a hub error in plain words, and what to do about it."""
    kinds = {kind.__name__ for one in chain(error) for kind in type(one).__mro__}
    if "GatedRepoError" in kinds:
        return "its owner asks you to accept terms first: do so on its page, then log in with `hf auth login`"
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        return "the hub has no such model, or it is private: then log in with `hf auth login`"
    if kinds & OFFLINE:
        return "the hub cannot be reached, and its weights are not in the cache"
    if "EntryNotFoundError" in kinds:
        return "the hub has no weights of it that timm can read"
    return first_line(error)


def chain(error: BaseException | None) -> list[BaseException]:
    """An error followed by its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()
