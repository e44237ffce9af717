"""Contrastive learning as a scikit-learn transformer: fit, transform, clone, pickle, Pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from crlf import recipe as recipes
from crlf.data import ImageSettings
from crlf.data.files.arrays import three_channels
from crlf.data.files.folder import typical
from crlf.data.files.listing import look_at
from crlf.data.stream import Files, scaled
from crlf.defaults import LARGEST
from crlf.errors import InputError, unknown
from crlf.inference.encoder import Encoder, load
from crlf.methods import METHODS
from crlf.runs.run import LOSS
from crlf.training.pretrain import pretrain

PART = 256  # files that are decoded at once


class ContrastiveEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An encoder that is trained on images without labels and transforms images to embeddings.

    X is an array (N, H, W, C), (N, C, H, W) or (N, H, W), a flat array (N, H W C) with `image_shape`, or a list of
    paths of image files. Arrays hold integers from 0 to 255, of any dtype, or numbers within `pixel_range`. Labels are
    ignored.

    Args:
        method: the method; one of crlf.methods.METHODS.
        encoder: the network; one of crlf.encoders.ENCODERS, or timm:NAME.
        epochs: passes over the images.
        batch_size: images per step; all images if there are fewer.
        views: views per image in a step.
        lr: learning rate; None for that of the recipe.
        temperature: temperature of the loss, for methods that have one; None for the method's default.
        image_size: resize images to this many pixels per side; 0 keeps the size of arrays and chooses one for files.
        image_shape: (H, W, C) or (H, W) of the images in a flat X; one dimension may be -1, to be inferred.
        pixel_range: the values of black and white in X, such as (0, 1); None for integers in 0..255.
        recipe: the name of the recipe with all other settings.
        device: where to compute: cpu, cuda, mps, or auto for the best available.
        random_state: seed of the weights, the order and the views. An int is the seed of `crlf pretrain`.
        verbose: whether to show the progress on stderr.

    Attributes:
        encoder_: the trained `crlf.Encoder`, which also accepts PIL images.
        loss_: float64 (epochs,), the mean loss of each epoch.
        n_features_in_: number of values in an image, C H W.
        feature_names_in_: the column names of a flat X, if it has any.
    """

    def __init__(
        self,
        method: str = "simclr",
        encoder: str = "cnn",
        *,
        epochs: int = 10,
        batch_size: int = 128,
        views: int = 4,
        lr: float | None = None,
        temperature: float | None = None,
        image_size: int = 0,
        image_shape: Sequence[int] | None = None,
        pixel_range: tuple[float, float] | None = None,
        recipe: str = "default",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.method = method
        self.encoder = encoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.views = views
        self.lr = lr
        self.temperature = temperature
        self.image_size = image_size
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.recipe = recipe
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> ContrastiveEncoder:
        """Train the encoder. `y` is ignored; it exists for Pipelines.

        Raises:
            InputError: X holds no images, or a parameter is wrong.
        """
        images = self._images(X, reset=True)
        if len(images) < 2:
            raise InputError(f"X must have at least 2 images, not n_samples={len(images)}")
        with tempfile.TemporaryDirectory(prefix="crlf-") as folder, self._quiet():
            if not isinstance(images, np.ndarray):
                images = decoded(images, self.image_size, Path(folder) / "decoded.npy")
                self.n_features_in_ = int(np.prod(images.shape[1:]))
            run = pretrain(self._recipe(len(images)), data=images, out=Path(folder) / "run", device=self.device)
            self.encoder_: Encoder = load(run, device=self.device)
            self.loss_ = run.array(LOSS)
        self._n_features_out = self.encoder_.dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Embed images: float32 (N, D)."""
        check_is_fitted(self)
        return self.encoder_.encode(self._images(X, reset=False))

    def _recipe(self, count: int) -> recipes.Recipe:
        """The recipe with the parameters of this estimator."""
        if self.recipe not in recipes.RECIPES:
            raise unknown("recipe", str(self.recipe), recipes.RECIPES)
        if self.method not in METHODS:
            raise unknown("method", str(self.method), METHODS)
        settings = recipes.RECIPES[self.recipe].to_dict()
        if settings["method"] != self.method:
            settings["head"] = dataclasses.asdict(METHODS[self.method].Settings())
        if self.lr is not None:
            settings["optim"]["lr"] = self.lr
        if self.temperature is not None:
            if "temperature" not in settings["head"]:
                raise InputError(f"temperature must be None for method {self.method!r}, which has none")
            settings["head"]["temperature"] = self.temperature
        settings |= {"method": self.method, "encoder": self.encoder, "epochs": self.epochs, "views": self.views}
        settings |= {"batch_size": min(self.batch_size, count), "seed": self._seed()}
        settings["images"] = {"image_size": self.image_size}
        return recipes.Recipe.from_dict(settings)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _quiet(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.verbose else contextlib.redirect_stderr(io.StringIO())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = self.pixel_range is None or self.pixel_range[0] >= 0
        tags.transformer_tags.preserves_dtype = []  # float32, whatever comes in
        return tags

    def _images(self, X: Any, reset: bool) -> np.ndarray | list[str]:
        """X as uint8 (N, 3, H, W), or as a list of whole paths."""
        if is_paths(X):
            return [os.path.abspath(os.path.expanduser(path)) for path in X]
        if dimensions(X) in (3, 4):
            array = check_array(X, dtype="numeric", allow_nd=True)
            self._check_n_features(array, reset)
        else:
            array = validate_data(self, X, reset=reset, dtype="numeric")
            array = array.reshape(len(array), *self._shape(array))
        images = three_channels(pixels(array, self.pixel_range), Path("X"))
        return scaled(images, self.image_size) if self.image_size else images

    def _check_n_features(self, array: np.ndarray, reset: bool) -> None:
        """Store or check the number of values in an image, as scikit-learn does for columns."""
        count = int(np.prod(array.shape[1:]))
        if reset:
            self.n_features_in_ = count
            self.__dict__.pop("feature_names_in_", None)
        elif count != self.n_features_in_:
            name = type(self).__name__
            raise InputError(f"X has {count} features, but {name} is expecting {self.n_features_in_} features as input")

    def _shape(self, flat: np.ndarray) -> tuple[int, ...]:
        if self.image_shape is None:
            raise InputError(f"X is flat, {flat.shape}: image_shape must say (H, W, C) or (H, W) of its images")
        shape, columns = tuple(self.image_shape), flat.shape[1]
        with contextlib.suppress(ValueError):
            if len(shape) in (2, 3):
                return np.arange(columns).reshape(shape).shape
        rule = f"(H, W, C) or (H, W) with a product of {columns}, the columns of X"
        raise InputError(f"image_shape must be {rule}, not {shape}")


def is_paths(X: Any) -> bool:
    """Whether X is a sequence of paths, judged by its first item."""
    if not hasattr(X, "__len__") or isinstance(X, str) or not len(X):
        return False
    return isinstance(next(iter(X)), str | os.PathLike)


def dimensions(X: Any) -> int:
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def pixels(array: np.ndarray, pixel_range: tuple[float, float] | None) -> np.ndarray:
    """Convert numbers to uint8 of the same shape.

    Args:
        array: numbers within the range.
        pixel_range: the values that become 0 and 255; None for integers in 0..255.

    Raises:
        InputError: the array is empty, or has values outside the range.
    """
    if 0 in array.shape:
        raise InputError(f"X must hold images with pixels, not {array.shape}")
    if array.dtype == np.uint8 and pixel_range is None:
        return array
    (black, white), (low, high) = pixel_range or (0, 255), (array.min(), array.max())
    if not black < white:
        raise InputError(f"pixel_range must be (black, white) with black below white, not {pixel_range}")
    found = f"{array.dtype} from {low:g} to {high:g}"
    if not black <= low <= high <= white:
        why = (
            "Negative values in data" if low < 0 <= black else "Values without a colour in data"
        )  # scikit-learn's words
        raise InputError(f"{why}: X must lie in {black:g}..{white:g}, not {found}")
    if pixel_range is None:
        if not (array == np.rint(array)).all():
            raise InputError(
                f"X must be whole numbers, not {found}: set pixel_range to the values of black and white, as (0, 1)"
            )
        return array.astype(np.uint8)
    return np.rint((array.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8)


def decoded(images: list[str], side: int, path: Path) -> np.ndarray:
    """Decode files at this size, or a typical one if it is 0: uint8 (N, 3, H, W), mapped from a new file.

    Raises:
        InputError: a file is damaged or not an image.
    """
    limit, files = ImageSettings().max_pixels, [look_at(name, name) for name in images]
    side = side or min(typical(files, limit), LARGEST)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(files), 3, side, side))
    parts = Files(files, side, limit, os.cpu_count() or 1).parts(range(len(files)), PART)
    for number, part in enumerate(parts):
        for name, why in part.skipped:
            raise InputError(f"image {name!r} cannot be used: {why}")
        array[number * PART :][: len(part.ids)] = part.images
    return array
