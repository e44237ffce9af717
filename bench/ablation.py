"""What each choice of the default recipe is worth: one change at a time, on a held-out 5,000 of the training images.

One epoch over the other 45,000, two views unless the row says otherwise; the test set is not touched. Three seeds: mean
and standard deviation. Runs go side by side, each on one core. The probes see 15,000 of the 45,000; the linear one's C
is fixed at 1 / (0.001 N), where the choice of it nearly always ends. Products are bf16 where the processor has it.
"""

from __future__ import annotations

import copy
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crlf
from bench.timing import mean_and_spread
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED, SOURCES, ImageSet, load
from crlf.embedding.embed import embed_images, load_encoder
from crlf.encoders import CNN, ENCODERS, EmbeddingSettings
from crlf.evaluation.logistic_regression import fit_linear
from crlf.methods import METHODS
from crlf.methods.simclr import SimCLR, SimCLRSettings
from crlf.metrics.knn import knn_predict
from crlf.normalisation import Normalisation
from crlf.optim import OptimSettings
from crlf.recipe import Recipe
from crlf.runtime.allocator import keep_freed_memory
from crlf.training import loop

BASE = "the base"
SEEDS = (0, 1, 2)
DONE = Path(__file__).parent / "ablation-done.jsonl"
HELD_OUT = 5000
PROBED = 15_000  # training images that the probes see


def held_out(data_dir: str | Path | None = None) -> tuple[ImageSet, ImageSet]:
    """CIFAR-10's training images, parted: 45,000 to learn from and 5,000 to choose by."""
    whole = load("cifar10", data_dir)[0]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42))
    assert whole.labels is not None
    train, held = (
        ImageSet(whole.images[rows], whole.labels[rows], whole.classes, tuple(map(str, rows.tolist())))
        for rows in (order[HELD_OUT:], order[:HELD_OUT])
    )
    return train, held


def with_stages(change: Callable[[int, nn.Module], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """The light CNN with each of its stages (convolution, pool, norm, activation) changed."""

    def build(channels: int, size: int, regions: int) -> nn.Module:
        network = CNN(channels, regions)
        for i, stage in enumerate(network.stages):
            network.stages[i] = change(i, stage)
        return network

    return build


def norm_before_pool(i: int, stage: nn.Module) -> nn.Module:
    convolution, pool, norm, activation = stage.children()
    return nn.Sequential(convolution, norm, activation, pool)


def pool_in_last(i: int, stage: nn.Module) -> nn.Module:
    convolution, pool, norm, activation = stage.children()
    return nn.Sequential(convolution, nn.MaxPool2d(2) if i == 3 else pool, norm, activation)


def strided(channels: int, size: int, regions: int) -> nn.Module:
    """The first stage is a 4x4 convolution of stride 2 and has no pool: a step takes an eighth less."""
    network = CNN(channels, regions)
    _, _, norm, activation = network.stages[0].children()
    network.stages[0] = nn.Sequential(nn.Conv2d(channels, 32, 4, 2, 1, bias=False), norm, activation)
    return network


def activated(activation: type[nn.Module]) -> Callable[[int, nn.Module], nn.Module]:
    return lambda i, stage: nn.Sequential(*list(stage.children())[:-1], activation())


def whitened(channels: int, size: int, regions: int) -> nn.Module:
    return whiten(CNN(channels, regions))


def whiten(network: CNN) -> CNN:
    """Let the first convolution begin as the whitened principal components of 3 x 3 patches and their negatives."""
    convolution: nn.Conv2d = network.stages[0][0]  # type: ignore[index]
    if convolution.weight.is_meta:
        return network  # built to see its shapes alone
    axes, variance = patch_components()
    filters = (axes / (variance + 1e-2).sqrt()).T.flip(0)[:16].unflatten(1, (convolution.in_channels, 3, 3))
    convolution.weight.data = torch.cat([filters, -filters]) / 10
    return network


@functools.lru_cache(maxsize=1)
def patch_components() -> tuple[Tensor, Tensor]:
    """The principal axes, in columns, and the variances of 3 x 3 patches of training images, the smallest first."""
    images = held_out()[0].images[:2000].float() / 255
    patches = images.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)  # (n, C 9)
    variance, axes = torch.linalg.eigh(torch.cov(patches.T))
    return axes, variance


class Averaged(SimCLR):
    """SimCLR whose encoder ends as the exponential moving average of its weights."""

    def __init__(self, encoder: nn.Module, settings: SimCLRSettings):
        super().__init__(encoder, settings)
        self.average = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        for mean, now in zip(self.average.state_dict().values(), self.encoder.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 0.01)
        if progress == 1:
            self.encoder.load_state_dict(self.average.state_dict())


class Progressive(Views):
    """Views of 16 pixels in the first half of the steps."""

    def __init__(self, settings: ViewSettings, normalisation: Normalisation, steps: int = 45_000 // 128):
        super().__init__(settings, normalisation)
        self.left, self.small = steps // 2, Views(replace(settings, resolution=0.5), normalisation)

    def of_part(self, *args: Any) -> tuple[Tensor, ...]:
        self.left -= 1
        return self.small.of_part(*args) if self.left >= 0 else super().of_part(*args)


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "last stage pools too": with_stages(pool_in_last),
    "last stage 512 wide": lambda channels, size, regions: CNN(channels, regions, widths=(32, 64, 128, 512)),
    "first stage strides instead of pooling": strided,
    "norm and SiLU before the pool": with_stages(norm_before_pool),
    "ReLU": with_stages(activated(nn.ReLU)),
    "GELU": with_stages(activated(nn.GELU)),
    "hard swish": with_stages(activated(nn.Hardswish)),
    "first convolution begins whitened": whitened,
}
EMBEDDINGS: dict[str, tuple[EmbeddingSettings, int]] = {  # and the stages that are read
    "embedding: whole image, no mirror": (EmbeddingSettings(regions=1, mirror=False), 3),
    "embedding: whole image": (EmbeddingSettings(regions=1), 3),
    "embedding: no mirror": (EmbeddingSettings(mirror=False), 3),
    "embedding: 3 x 3 regions": (EmbeddingSettings(regions=3), 3),
    "embedding: last stage alone": (EmbeddingSettings(), 1),
    "embedding: last two stages": (EmbeddingSettings(), 2),
    "embedding: all four stages": (EmbeddingSettings(), 4),
}  # of the base's trained encoder


def changes() -> dict[str, Recipe]:
    """The recipes, by what they change."""
    base = Recipe(
        data="held-out", epochs=1, views=2, normalisation=PUBLISHED["cifar10"],
        augmentation=ViewSettings(clamp=False), optim=OptimSettings(weight_decay=0.0),
    )  # fmt: skip

    def views(**settings: Any) -> Recipe:
        return replace(base, augmentation=ViewSettings(clamp=False, **settings))

    def optim(**settings: Any) -> Recipe:
        return replace(base, optim=OptimSettings(**{"weight_decay": 0.0, **settings}))

    def head(**settings: Any) -> Recipe:
        return replace(base, head=SimCLRSettings(**settings))

    return {
        BASE: base,
        **{name: replace(base, encoder=name) for name in NETWORKS},
        "views of 32 pixels instead of 24": views(resolution=1.0),
        "views of 20 pixels": views(resolution=0.625),
        "views of 16 pixels in the first half": replace(base, data="progressive"),
        "crops of at least 0.1": views(crop_min=0.1),
        "crops of at least 0.35": views(crop_min=0.35),
        "grayscale 0.1": views(grayscale=0.1),
        "blur (kernel 3, half the views)": views(blur=0.5),
        "four views of an image": replace(base, views=4),
        "batches of 64": replace(base, batch_size=64),
        "batches of 256": replace(base, batch_size=256),
        "AdamW, lr 0.003": optim(optimizer="adamw", lr=3e-3),
        "Muon, lr 0.01": optim(lr=0.01),
        "Muon, lr 0.04": optim(lr=0.04),
        "Muon, weight decay 0.1": optim(weight_decay=0.1),
        "temperature 0.1": head(temperature=0.1),
        "temperature 0.5": head(temperature=0.5),
        "projector 1024 wide": head(hidden=1024),
        "float32": replace(base, precision="float32"),
        "EMA of the weights, 0.99": replace(base, method="averaged"),
    }


def prepare() -> None:
    """What a process needs to know the names of the changes."""
    torch.set_num_threads(1)
    keep_freed_memory()
    SOURCES.update({"held-out": held_out, "progressive": held_out})
    PUBLISHED.update(dict.fromkeys(("held-out", "progressive"), PUBLISHED["cifar10"]))
    ENCODERS.update(NETWORKS)
    METHODS["averaged"] = Averaged


def measure(only: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows; `only` names some of the changes beside the base.

    What is done is kept in a git-ignored file, and not done again: the whole takes about an hour and a half.
    """
    prepare()
    names = {BASE, *changes()} if only is None else {BASE, *only}
    jobs = [(name, replace(recipe, seed=seed)) for seed in SEEDS for name, recipe in changes().items() if name in names]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), prepare) as pool:
        found = [row for some in pool.map(score, *zip(*jobs, strict=True)) for row in some]
    return summaries(found)


def summaries(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a change: means over the seeds, standard deviations, and what it gains over the base."""
    base = statistics.mean(row["linear_%"] for row in found if row["change"] == BASE)
    rows = []
    for name in dict.fromkeys(row["change"] for row in found):
        of = [row for row in found if row["change"] == name]
        linear, knn = ([row[key] for row in of] for key in ("linear_%", "kNN_%"))
        rows.append(
            {
                "change": name,
                "gain": f"{statistics.mean(linear) - base:+.1f}" if name != BASE else "",
                "linear_%": mean_and_spread(linear),
                "kNN_%": mean_and_spread(knn),
                "PFLOP": statistics.mean(row["PFLOP"] for row in of),
            }
        )
    return rows


def score(name: str, recipe: Recipe) -> list[dict[str, Any]]:
    """Train and measure; the base is also measured with other embeddings."""
    key = json.dumps([name, recipe.to_dict()])
    if DONE.exists():
        for line in DONE.read_text(encoding="utf-8").splitlines():
            kept = json.loads(line)
            if kept["key"] == key:
                return kept["rows"]
    rows = trained(name, recipe)
    with DONE.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "rows": rows}) + "\n")
    return rows


def trained(name: str, recipe: Recipe) -> list[dict[str, Any]]:
    if recipe.data == "progressive":
        loop.Views = Progressive  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe, out=folder, device="cpu")
        loop.Views = Views  # type: ignore[misc]
        pflop = run.scores["pflop"]
        rows = [{"change": name, **accuracies(run, run.recipe), "PFLOP": pflop}]
        for other, (settings, read) in EMBEDDINGS.items() if name == BASE else ():
            read_so = replace(run.recipe, embedding=settings)
            rows.append({"change": other, **accuracies(run, read_so, read), "PFLOP": pflop})
    return rows


def accuracies(run: crlf.Run, recipe: Recipe, read: int = 3) -> dict[str, float]:
    """Linear and kNN accuracy on the held-out images, in percent."""
    train, held = held_out()
    train = train.first(PROBED)
    assert train.labels is not None and held.labels is not None
    frozen, by = load_encoder(run, recipe, train.images.shape[1:]), run.recipe.normalisation
    frozen.encoder.read = read  # type: ignore[assignment]
    x, y = embed_images(frozen, train.images, by), train.labels.numpy()
    test, truth = embed_images(frozen, held.images, by), held.labels.numpy()
    predicted = {
        "linear_%": fit_linear(x, y, 1 / (1e-3 * len(x)), tolerance=1e-6).predict(test),
        "kNN_%": knn_predict(x, y, test),
    }
    return {key: 100 * float((values == truth).mean()) for key, values in predicted.items()}
