"""A recipe: every setting of a run, built once and never changed. The named ones are in `RECIPES`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from crlf import encoders
from crlf.augmentation import ViewSettings
from crlf.data import PUBLISHED, SOURCES, ImageSet, ImageSettings, named, of_files
from crlf.data.files.class_folders import HELD_OUT
from crlf.defaults import DOMAINS, LARGE, OF_FILES, OF_LARGE, STEPS, Unasked, UnaskedInt, unasked
from crlf.encoders import EmbeddingSettings, InitSettings
from crlf.errors import InputError, unknown
from crlf.methods import METHODS
from crlf.methods.barlow import BarlowSettings
from crlf.methods.byol import BYOLSettings
from crlf.methods.simclr import SimCLRSettings
from crlf.normalisation import Normalisation, measured
from crlf.optim import OptimSettings
from crlf.runtime.devices import MODES, PRECISIONS
from crlf.runtime.distributed import SHARDS

LIMITS = {
    "epochs": (1, 100_000),
    "minutes": (0, 1_000_000),
    "reserve": (0, 1_000_000),
    "batch_size": (2, 65_536),
    "micro_batch": (0, 65_536),
    "views": (2, 64),
    "subset": (0, 2**40),
    "seed": (0, 2**63 - 1),
}


class UpTo(int):
    """A size of batches of a named recipe: a set with fewer images makes it smaller."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run."""

    method: str = "simclr"
    """The method; one of crlf.methods.METHODS."""
    encoder: str = unasked("cnn")
    """The encoder; one of crlf.encoders.ENCODERS, or timm:NAME for any model of timm. With --init, the default is the
    network of these weights."""
    data: str = "cifar10"
    """The images; one of crlf.data.SOURCES, or the path of a folder, a list of files (.txt), a table or an array
    (.npy, .npz). On the command line you can leave out --data."""
    subset: int = 0
    """Use the first this many training and test images; 0 uses all."""
    drop_copies: bool = False
    """Train on only one of several images with the same pixels. All are embedded."""
    epochs: int = unasked(10)
    """Passes over the training images. For your own files the default is enough for 1,000 steps or more; 0
    keeps the weights of --init."""
    minutes: float = 0.0
    """Time budget instead of epochs: as many steps as fit; 0 trains by epochs."""
    reserve: float = 0.0
    """Minutes of the time budget to keep for the steps after training. `crlf run` sets this for your own images."""
    batch_size: int = unasked(128)
    """Images in a step; a last, smaller batch is left out. The default for your own files is 64, or all of them if
    there are fewer."""
    micro_batch: int = 0
    """Images that a process holds in memory at a time, if its part of the batch is larger. Gradients stay those of the
    whole batch; the price is a second forward pass. 0 holds all at once."""
    frozen_norm: bool = False
    """Let batch norm use its running statistics instead of those of the batch or of each micro-batch."""
    domain: str = "photos"
    """What the images show, which decides how a view may differ from its image; one of crlf.defaults.DOMAINS."""
    views: int = 4
    """Views of each image in a step; all pairs are positive. --local-views adds small ones."""
    seed: int = 0
    """Seed of the weights, the order and the views."""
    precision: str = "auto"
    """Number format of the network's products in training: float32, bf16, or auto for bf16 where it is faster.
    Weights, losses and statistics are float32 in any case, and so is what is embedded."""
    compile: str = "none"
    """How to speed up a step. none; graphs replays it as one CUDA graph (NVIDIA, one process); kernels fuses views,
    network and loss by torch.compile, which makes the first step slow; all does both."""
    shard: str = "auto"
    """How several processes hold the weights. none: each holds all; full: each holds a part of every tensor, by
    torch's FSDP2; auto: full if the weights and what training keeps of them need over half of a device's memory."""
    stop_on_collapse: bool = False
    """Stop the run when its features collapse, instead of only warning."""
    images: ImageSettings = field(default_factory=ImageSettings)
    augmentation: ViewSettings = field(default_factory=ViewSettings)
    normalisation: Normalisation = field(default_factory=Normalisation)
    start: InitSettings = field(default_factory=InitSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    head: Any = None
    """The method's own settings; None takes its defaults."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        object.__setattr__(self, "data", named(self.data))  # a whole path: the run is used from other folders too
        encoders.find(self.encoder)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.compile not in MODES:
            raise unknown("compile", self.compile, MODES)
        if self.shard not in SHARDS:
            raise unknown("shard", self.shard, SHARDS)
        if self.domain not in DOMAINS:
            raise unknown("domain", self.domain, DOMAINS)
        object.__setattr__(self, "augmentation", filled(self.augmentation, DOMAINS[self.domain]))
        if self.head is None:
            object.__setattr__(self, "head", METHODS[self.method].Settings())
        if not isinstance(self.head, METHODS[self.method].Settings):
            rule = f"a {METHODS[self.method].Settings.__name__} or None for method {self.method!r}"
            raise InputError(f"head must be {rule}, not a {type(self.head).__name__}")
        if (local := self.augmentation.local_views) and not METHODS[self.method].takes_local:
            takers = ", ".join(name for name, kind in METHODS.items() if kind.takes_local)
            raise InputError(f"local_views must be 0 for method {self.method!r}, not {local}: {takers} take them")
        for name, (low, high) in LIMITS.items():
            low = 0 if name == "epochs" and self.start.init else low
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")
        if self.minutes and self.reserve >= self.minutes:
            raise InputError(f"reserve must be below the {self.minutes:g} minutes of the run, not {self.reserve:g}")

    @property
    def as_given(self) -> bool:
        """Whether nothing is trained: the encoder has the weights that it starts from."""
        return not self.epochs and not self.minutes

    @property
    def budget(self) -> float:
        """Minutes of training; 0 where it goes by epochs."""
        return self.minutes - self.reserve if self.minutes else 0.0

    @property
    def all_views(self) -> int:
        """Views of each image in a step, with the small ones."""
        return self.views + self.augmentation.local_views

    def for_images(self, images: int) -> Recipe:
        """The recipe for so many training images, of which a batch that was not asked for may be all.

        For your own files, what was not asked for is as crlf.defaults has it, and a small set gets enough steps.

        Raises:
            InputError: it is one image, or none.
        """
        if images < 2:
            raise InputError(f"data {self.data!r} must have 2 training images or more, not {images}")
        recipe = self.of_files() if of_files(self.data) else self
        if isinstance(recipe.batch_size, UpTo | UnaskedInt) and images < recipe.batch_size:
            recipe = dataclasses.replace(recipe, batch_size=images)
        if not of_files(self.data) or self.minutes or not isinstance(self.epochs, UnaskedInt):
            return recipe
        enough = -(-STEPS // recipe.steps_per_epoch(images))
        return dataclasses.replace(recipe, epochs=max(self.epochs, enough))

    def of_files(self) -> Recipe:
        """The recipe for your own files, but for the epochs: what was not asked for is as crlf.defaults has it."""
        recipe, views = filled(self, OF_FILES), self.augmentation
        if self.images.image_size < LARGE or not isinstance(views.resolution, Unasked):
            return recipe
        return dataclasses.replace(recipe, augmentation=dataclasses.replace(views, resolution=OF_LARGE))

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in an epoch over this many images.

        Raises:
            InputError: the batch is larger than the data set.
        """
        if self.batch_size > images:
            raise InputError(f"batch_size must be at most the {images} training images, not {self.batch_size}")
        return images // self.batch_size

    def resolved(self, data: ImageSet) -> Recipe:
        """The recipe as a run keeps it: with the mean and the deviation of its training images, where it gives none.

        Those are the published ones of a data set known by name, and measured on any other.
        """
        if self.normalisation.known:
            return self
        return dataclasses.replace(self, normalisation=PUBLISHED.get(self.data) or measured(data.images))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as recipe.json holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`; settings that are left out take their defaults.

        Raises:
            InputError: an unknown setting, or a value of the wrong type or range.
        """
        values = moved(values)
        method = values.get("method", "simclr")
        if not isinstance(method, str) or method not in METHODS:
            raise unknown("method", str(method), METHODS)
        sections = {
            "images": ImageSettings,
            "augmentation": ViewSettings,
            "normalisation": Normalisation,
            "start": InitSettings,
            "optim": OptimSettings,
            "embedding": EmbeddingSettings,
            "head": METHODS[method].Settings,
        }
        plain = {k: v for k, v in values.items() if k not in sections}
        built = {k: _build(s, values[k], f"{k}.") for k, s in sections.items() if values.get(k) is not None}
        return _build(cls, plain, "", built)


def filled(settings: Any, values: dict[str, Any]) -> Any:
    """A dataclass in which these values stand wherever nobody asked for one, and else the defaults."""
    free = [field for field in dataclasses.fields(settings) if isinstance(getattr(settings, field.name), Unasked)]
    new = {field.name: unasked(values[field.name]) if field.name in values else field.default for field in free}
    return dataclasses.replace(settings, **new) if new else settings


def like(settings: Any, other: Any) -> Any:
    """A dataclass with the values of another of its kind wherever nobody asked for one."""
    new = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if isinstance(value, Unasked):
            new[one.name] = getattr(other, one.name)
        elif dataclasses.is_dataclass(value) and type(value) is type(getattr(other, one.name)):
            new[one.name] = like(value, getattr(other, one.name))
    return dataclasses.replace(settings, **new) if new else settings


def settled(settings: Any) -> Any:
    """A dataclass, and those that it holds, in which every value counts as asked for."""
    new = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if isinstance(value, Unasked):
            new[one.name] = type(value).__mro__[2](value)
        elif dataclasses.is_dataclass(value):
            new[one.name] = settled(value)
    return dataclasses.replace(settings, **new)


def moved(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older recipe, which had the mean and the deviation among those of the views, and of a run that
    held a tenth of its images out without a setting for it."""
    images, data = values.get("images"), values.get("data")
    of_ones_own = isinstance(data, str) and data not in SOURCES
    if of_ones_own and isinstance(images, dict) and "image_size" in images and "hold_out" not in images:
        values = values | {"images": images | {"hold_out": HELD_OUT}}
    views = values.get("augmentation")
    if "normalisation" in values or not isinstance(views, dict) or not {"mean", "std"} & views.keys():
        return values
    own = {name: views[name] for name in ("mean", "std") if name in views}
    return values | {"augmentation": {k: v for k, v in views.items() if k not in own}, "normalisation": own}


def _build(cls: Any, values: Any, prefix: str, built: dict[str, Any] | None = None) -> Any:
    """A dataclass from plain values, each checked against its type."""
    if not isinstance(values, dict):
        raise InputError(f"setting {prefix.rstrip('.')!r} must be an object, not {values!r}")
    hints = get_type_hints(cls)
    checked = dict(built or {})
    for name, value in values.items():
        if name not in hints:
            raise unknown("setting", prefix + name, (prefix + h for h in hints))
        checked[name] = _typed(prefix + name, value, hints[name])
    return cls(**checked)


def _typed(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, item, get_args(hint)[0]) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or (type(value) is hint):
        return value
    raise InputError(f"setting {name!r} must be of type {getattr(hint, '__name__', hint)}, not {value!r}")


PLAIN = EmbeddingSettings(regions=1, mirror=False)  # as the literature embeds
HALF = ViewSettings(resolution=1.0, crop_min=0.08)  # SimCLR's colours at half strength (appendix B.9), no blur
MILD = ViewSettings(resolution=1.0, crop_min=0.08, saturation=0.2)  # solo-learn's for CIFAR, without solarisation


def lars(lr: float, weight_decay: float, loss_scale: float, kind: str = "solo-learn") -> OptimSettings:
    """As for 1000 epochs, the first ten of which warm up; lr is per 256 images."""
    trust = 0.02 if kind == "solo-learn" else 0.001
    return OptimSettings(
        optimizer="lars", lars=kind, lr=lr, momentum=0.9, weight_decay=weight_decay, trust=trust, warmup=0.01,
        loss_scale=loss_scale,
    )  # fmt: skip


def published(method: str, encoder: str, optim: OptimSettings, views: ViewSettings, **others: Any) -> Recipe:
    """A recipe with two views of full size, embedded as the literature does."""
    return Recipe(method=method, encoder=encoder, optim=optim, views=2, augmentation=views, embedding=PLAIN, **others)


NAMED: dict[str, Recipe] = {
    "default": Recipe(),
    # The project that this one grew from: SimCLR on CIFAR-10 in 10 epochs, 45.3 % linear accuracy.
    "seed": Recipe(
        batch_size=128,
        views=2,
        augmentation=ViewSettings(resolution=1.0, blur=1.0, blur_kernel=3),
        optim=OptimSettings(optimizer="adam", lr=3e-4, warmup=0.0, final_lr=1.0),
        embedding=PLAIN,
        head=SimCLRSettings(temperature=0.5),
    ),
    # What follows is published for CIFAR-10 and serves CIFAR-100 as well; docs/recipe.md names the sources.
    "simclr-r18": published(
        "simclr", "resnet18",
        OptimSettings(optimizer="sgd", lr=0.06, momentum=0.9, weight_decay=5e-4, decay_all=True, warmup=0.0),
        ViewSettings(resolution=1.0, grayscale=0.1),
        epochs=100, batch_size=512, head=SimCLRSettings(temperature=0.5, hidden=1024, projector_norms="none"),
    ),
    # For a GPU: docs/speedrun.md has the plan, and what came of it.
    "speedrun-knn90": Recipe(
        encoder="resnet18", epochs=132, batch_size=512, views=4, compile="all",
        augmentation=ViewSettings(grayscale=0.1), embedding=EmbeddingSettings(regions=1, mirror=True),
        head=SimCLRSettings(temperature=0.2, hidden=512), optim=OptimSettings(weight_decay=0.1),
    ),
    "r18-best": Recipe(
        method="mocov3", encoder="resnet18", epochs=400, batch_size=512, views=4, compile="all",
        augmentation=ViewSettings(resolution=1.0, grayscale=0.1), optim=OptimSettings(weight_decay=0.1),
    ),
    "simclr-r50": published(
        "simclr", "resnet50", lars(1.0, 1e-4, loss_scale=2.0, kind="simclr"), HALF,
        epochs=1000, batch_size=1024,
        head=SimCLRSettings(temperature=0.5, hidden=2048, projector_layers=3, projector_norms="all"),
    ),
    "simclr-vit": published(
        "simclr", "vit_tiny",
        OptimSettings(optimizer="adamw", lr=3e-4, weight_decay=0.1, warmup=0.1), HALF,
        epochs=200, batch_size=512, head=SimCLRSettings(temperature=0.2, hidden=2048, projection=256),
    ),
    "mocov3-r18": published("mocov3", "resnet18", lars(0.3, 1e-6, loss_scale=2.0), MILD, epochs=1000, batch_size=256),
    "byol-r18": published(
        "byol", "resnet18", lars(1.0, 1e-5, loss_scale=2.0), MILD,
        epochs=1000, batch_size=256, head=BYOLSettings(hidden=4096),
    ),
    "barlow-r18": published(
        "barlow", "resnet18", lars(0.3, 1e-4, loss_scale=0.1), MILD,
        epochs=1000, batch_size=256, head=BarlowSettings(projector_layers=3),
    ),
    "vicreg-r18": published(
        "vicreg", "resnet18", lars(0.3, 1e-4, loss_scale=1.0), ViewSettings(resolution=1.0, saturation=0.2),
        epochs=1000, batch_size=256,
    ),
}  # fmt: skip


def as_named(recipe: Recipe) -> Recipe:
    """A recipe whose values are all asked for, but for the views that a domain sets and a batch that is too large."""
    views = dataclasses.replace(recipe.augmentation, resolution=float(recipe.augmentation.resolution))
    return dataclasses.replace(settled(recipe), batch_size=UpTo(recipe.batch_size), augmentation=views)


RECIPES = {name: as_named(recipe) if name != "default" else recipe for name, recipe in NAMED.items()}
