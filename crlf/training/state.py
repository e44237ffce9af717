"""The state of a training run, which a checkpoint stores."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor

from crlf import encoders
from crlf.augmentation import view_size
from crlf.data import ImageSet
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import TaughtMethod
from crlf.normalisation import normalise
from crlf.optim import OPTIMIZERS
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.files import write_json
from crlf.runs.run import RECIPE, Run, difference
from crlf.text import say
from crlf.training.engines import Engine, Whole
from crlf.training.weights.layers import begin_late, freeze, slow
from crlf.training.weights.matching import load
from crlf.training.weights.sources import Weights

CHEAP = 0.25  # seconds; a checkpoint that takes less is written after every epoch
SHARE = 0.05  # of the training time that slower checkpoints may take


def completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older run; settings that did not exist yet get their defaults."""
    return Recipe.from_dict(recipe).to_dict()


def has_moved(run: Run, data: str, images: ImageSet) -> bool:
    """Whether these are a run's training images under a new path, by the fingerprint in its checkpoint.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    if not run.file(RECIPE).is_file() or run.settings.get("data") == data or not checkpoints.kept(run):
        return False
    values = checkpoints.load(run)
    images = images.without_copies() if run.settings.get("drop_copies") else images
    return values.get("pixels") == images.fingerprint(names=False) or values.get("fingerprint") == images.fingerprint()


def note_move(run: Run, data: str) -> None:
    """Write the new path of a run's images into its recipe."""
    say(f"the images of {run.settings.get('data')!r} are the same as in {data!r}: the run uses the new path")
    write_json(run.file(RECIPE), run.settings | {"data": data})


def require_fit(encoder: torch.nn.Module, recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError unless the encoder accepts the images, at the size they are embedded at, and their views."""
    normalise(data.images[:1], recipe.normalisation)  # raises if the number of channels differs
    _, channels, height, width = data.images.shape
    if recipe.augmentation.turn and height != width:
        why = f"turn must be 0, not {recipe.augmentation.turn:g}, for images of {height} × {width} px"
        raise InputError(f"{why}: a quarter turn would make them {width} × {height}")
    encoders.trial(encoder, recipe.encoder, channels, height, width)
    if recipe.as_given:
        return  # it will see no views
    views = recipe.augmentation
    for name, settings in (("resolution", views), ("local-resolution", views.of_local))[: 1 + bool(views.local_views)]:
        h, w = (view_size(side, settings) for side in (height, width))
        advice = f"; --{name} 1 makes the views as large as the images"
        encoders.trial(encoder, recipe.encoder, channels, h, w, advice)


class State:
    """The method, its optimizers and the progress of a training run, which a checkpoint stores."""

    def __init__(
        self,
        recipe: Recipe,
        data: ImageSet,
        device: torch.device,
        weights: Weights | None = None,
        features: Tensor | None = None,
    ):
        """Make the encoder, the method around it and its optimizers.

        Args:
            recipe: the settings of the run.
            data: the training images.
            device: where to train.
            weights: the trained weights that the encoder starts from; None for random weights.
            features: a teacher's features, float32 (N, T), for a `TaughtMethod`.
        """
        _, channels, height, width = data.images.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            encoder = encoders.build(recipe.encoder, channels, min(height, width))
            require_fit(encoder, recipe, data)
            self.match = load(encoder, weights, recipe.start) if weights else None  # how they fit, for the log
            freeze(encoder, recipe.start.freeze, recipe.start.norms == "keep")
            self.start = copy.deepcopy(encoder.state_dict()) if weights and recipe.start.mix < 1 else None
            self.method = METHODS[recipe.method](encoder, recipe.head)
            self.method.local_views = recipe.augmentation.local_views
            self.method.meet(len(data))
            if isinstance(self.method, TaughtMethod):
                assert features is not None, "a method that is taught needs a teacher's features"
                self.method.learn_from(features)
            self.method.to(device)
        named = list(self.method.named_parameters())
        self.optimizers = OPTIMIZERS[recipe.optim.optimizer](named, recipe.optim.for_batch(recipe.batch_size))
        if recipe.start.layer_decay < 1:
            slow(self.optimizers, self.method.encoder, recipe.start.layer_decay)
        if recipe.start.head_first:
            begin_late(self.optimizers, self.method.encoder)
        self.recipe = recipe
        self.device = device
        self.fingerprint, self.pixels = data.fingerprint(), data.fingerprint(names=False)
        self.step = 0  # steps done
        self.seconds = 0.0  # of training so far
        self.first_step = 0.0  # seconds of this process's first step, with its compiling
        self.share = 0.0  # of the run that is done
        self.saved = self.save_took = 0.0  # when the last checkpoint was written, and the seconds that it took
        self.losses = torch.zeros(recipe.steps_per_epoch(len(data)), device=device)  # of this epoch's steps
        self.epoch_losses: list[float] = []  # the mean of each whole epoch

    def save(self, run: Run, at_once: bool = True, kept: Whole | None = None) -> None:
        """Write a checkpoint: at once, or only if that is cheap compared with the training since the last one.

        Args:
            kept: the weights and moments, where processes share them.
        """
        begun = time.perf_counter()
        if not at_once and self.save_took > CHEAP and begun - self.saved < self.save_took / SHARE:
            return
        kept = kept or Engine(self.method).whole(self.optimizers)
        values = {
            "recipe": self.recipe.to_dict(),
            "method": kept.method,
            "optimizers": kept.optimizers,
            "losses": self.losses,
            "fingerprint": self.fingerprint,
            "pixels": self.pixels,
            **({"start": self.start} if self.start else {}),
            **{name: getattr(self, name) for name in ("step", "seconds", "share", "epoch_losses")},
        }
        checkpoints.save(run, values)
        self.saved = time.perf_counter()
        self.save_took = self.saved - begun

    def kept(self) -> dict[str, Tensor]:
        """The encoder's final weights, on the CPU: interpolated between the start and the end by `InitSettings.mix`
        (Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903)."""
        end = {name: value.cpu() for name, value in self.method.encoder.state_dict().items()}
        if self.start is None:
            return end
        return {
            name: torch.lerp(self.start[name].cpu(), value, self.recipe.start.mix)
            if value.is_floating_point()
            else value
            for name, value in end.items()
        }

    def load(self, run: Run) -> None:
        values = checkpoints.load(run)
        where = f"the checkpoint in {str(run.path)!r}"
        try:
            moved = values["recipe"].get("data") != self.recipe.data  # then names may differ, and the pixels decide
            same = values.get("fingerprint") == self.fingerprint or (moved and values.get("pixels") == self.pixels)
            for name, here, there in difference(self.recipe.to_dict(), completed(values["recipe"])):
                if name != "data" or not same:
                    raise InputError(f"{name} is {here!r}, but {where} has {there!r}")
            if "fingerprint" in values and not same:  # older ones have none
                raise InputError(f"the images of {self.recipe.data!r} are not those that {where} was trained on")
            self.method.load_state_dict(values["method"])
            for optimizer, saved in zip(self.optimizers, values["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if values["losses"].shape != self.losses.shape:
                raise ValueError(f"it holds the losses of {len(values['losses'])} steps, not {len(self.losses)}")
            self.losses.copy_(values["losses"])
            self.start = values.get("start")
            for name in ("step", "seconds", "share", "epoch_losses"):
                setattr(self, name, values[name])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is damaged: {str(error).splitlines()[0]}") from error
