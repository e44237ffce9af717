"""The estimator keeps scikit-learn's rules, and learns what `crlf pretrain` learns."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import crlf
from crlf import ContrastiveEncoder, data
from crlf.errors import InputError
from crlf.inference.sklearn import pixels
from crlf.recipe import RECIPES

TRAIN = data.load("shapes")[0]
IMAGES, LABELS = TRAIN.images[:96].numpy(), TRAIN.labels[:96].numpy()
FAST = {"epochs": 1, "batch_size": 64, "views": 2, "device": "cpu", "random_state": 0, "recipe": "seed"}


pytestmark = pytest.mark.usefixtures("all_narrow")


@pytest.fixture(scope="module")
def fitted(all_narrow: None) -> ContrastiveEncoder:
    return ContrastiveEncoder(**FAST).fit(IMAGES)


# scikit-learn's own checks

FLOATS = "its X is of floats, and pixels are whole numbers unless pixel_range says more"
EXPECTED = dict.fromkeys(
    [
        *("check_fit_score_takes_y", "check_estimators_overwrite_params", "check_dont_overwrite_parameters"),
        *("check_estimators_fit_returns_self", "check_readonly_memmap_input", "check_n_features_in_after_fitting"),
        *("check_estimators_dtypes", "check_dtype_object", "check_pipeline_consistency", "check_estimators_nan_inf"),
        *("check_estimators_pickle", "check_f_contiguous_array_estimator", "check_transformer_data_not_an_array"),
        *("check_transformer_general", "check_methods_sample_order_invariance", "check_methods_subset_invariance"),
        *("check_fit2d_1sample", "check_fit2d_1feature", "check_dict_unchanged", "check_fit_idempotent"),
        *("check_fit_check_is_fitted", "check_n_features_in", "check_fit2d_predict1d"),
    ],
    FLOATS,
)


def outcomes(estimator: ContrastiveEncoder, expected: dict[str, str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    checked = check_estimator(estimator, expected_failed_checks=expected, on_skip=None)
    for one in checked:
        found.setdefault(one["status"], set()).add(one["check_name"])
    return found


@pytest.mark.long
def test_check_estimator_with_a_range_for_its_numbers():
    """Every check passes: a row of its table is an image one pixel high, and its numbers lie in a named range."""
    strips = {"image_shape": (1, -1), "image_size": 8, "pixel_range": (-50, 150)}
    found = outcomes(ContrastiveEncoder(**(FAST | strips)), {})
    assert set(found) <= {"passed", "skipped"} and len(found["passed"]) >= 40
    assert found.get("skipped", set()) <= {"check_array_api_input"}  # an option of scikit-learn's


def test_check_estimator_as_it_comes():
    found = outcomes(ContrastiveEncoder(**FAST, image_shape=(1, -1)), EXPECTED)
    assert set(found) <= {"passed", "skipped", "xfail"} and found["xfail"] == set(EXPECTED)  # no reason that is gone


# What it learns


def test_it_is_pretrain_and_embed(tmp_path: Path, fitted: ContrastiveEncoder):
    np.save(tmp_path / "x.npy", IMAGES)
    settings = RECIPES["seed"].to_dict() | {"data": str(tmp_path / "x.npy"), "epochs": 1, "batch_size": 64}
    run = crlf.embed(crlf.pretrain(crlf.Recipe.from_dict(settings), out=tmp_path / "run", device="cpu"), device="cpu")
    found = fitted.transform(IMAGES)
    assert found.dtype == np.float32 and np.array_equal(found, run.array("train_emb.npy"))
    assert np.array_equal(fitted.loss_, run.array("loss.npy"))


LAYOUTS = {
    "channels last": ({}, IMAGES.transpose(0, 2, 3, 1)),
    "flat": ({"image_shape": (32, 32, 3)}, IMAGES.transpose(0, 2, 3, 1).reshape(96, -1)),
    "flat floats": ({"image_shape": (32, -1, 3)}, IMAGES.transpose(0, 2, 3, 1).reshape(96, -1).astype(np.float64)),
    "fractions": ({"pixel_range": (0, 1)}, IMAGES / 255),
    "integers": ({}, IMAGES.astype(np.int64)),
    "in another range": ({"pixel_range": (-1, 1)}, (IMAGES / 127.5 - 1).astype(np.float32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_learns_the_same(fitted: ContrastiveEncoder, layout: str):
    settings, X = LAYOUTS[layout]
    other = ContrastiveEncoder(**FAST, **settings).fit(X)
    assert np.array_equal(other.transform(X), fitted.transform(IMAGES))
    assert other.n_features_in_ == 3 * 32 * 32


def test_paths_learn_the_same_and_leave_no_cache(fitted: ContrastiveEncoder, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CRLF_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"bild {i:03}\nä.png" for i in range(96)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    other = ContrastiveEncoder(**FAST).fit(paths)
    assert np.array_equal(other.transform(paths), fitted.transform(IMAGES))
    np.testing.assert_allclose(other.transform([str(paths[7])]), fitted.transform(IMAGES[7:8]), atol=1e-6)
    assert other.n_features_in_ == 3 * 32 * 32 and not (tmp_path / "cache").exists()
    small = ContrastiveEncoder(**FAST, image_size=16).fit(paths)
    assert small.encoder_.shape == (3, 16, 16)


def test_settings_reach_the_recipe():
    asked = ContrastiveEncoder("mocov2", epochs=1, lr=0.01, temperature=0.3, views=2, batch_size=999, device="cpu",
                               random_state=7, image_size=16).fit(IMAGES)  # fmt: skip
    recipe = asked.encoder_.recipe
    assert (recipe.method, recipe.optim.lr, recipe.head.temperature, recipe.seed) == ("mocov2", 0.01, 0.3, 7)
    assert (recipe.batch_size, recipe.images.image_size, asked.encoder_.shape) == (96, 16, (3, 16, 16))
    assert recipe.augmentation == RECIPES["default"].augmentation
    assert asked.transform(IMAGES).shape == (96, asked.encoder_.dim)


def test_random_state(fitted: ContrastiveEncoder):
    once = clone(fitted).set_params(random_state=1).fit(IMAGES).transform(IMAGES)
    assert not np.array_equal(once, fitted.transform(IMAGES))
    twice = [clone(fitted).set_params(random_state=np.random.RandomState(5)).fit(IMAGES).loss_ for _ in range(2)]
    assert np.array_equal(*twice)
    drawn = [clone(fitted).set_params(random_state=None).fit(IMAGES).encoder_.recipe.seed for _ in range(2)]
    assert drawn[0] != drawn[1]


# Among its kind


def test_in_a_pipeline_and_a_grid(capsys):
    pipeline = make_pipeline(ContrastiveEncoder(**FAST), LogisticRegression(max_iter=1000))
    grid = GridSearchCV(pipeline, {"contrastiveencoder__temperature": [0.2, 0.9]}, cv=2, error_score="raise")
    grid.fit(IMAGES, LABELS)
    assert grid.predict(IMAGES).shape == (96,) and grid.best_score_ > 1 / 8  # chance
    assert (
        grid.best_estimator_[0].encoder_.recipe.head.temperature == grid.best_params_["contrastiveencoder__temperature"]
    )
    assert capsys.readouterr().err == ""


def test_verbose_shows_the_progress(capsys):
    ContrastiveEncoder(**FAST, verbose=True).fit(IMAGES)
    assert "epoch 1/1" in capsys.readouterr().err


def test_a_pickled_and_a_cloned_one(fitted: ContrastiveEncoder):
    expected = fitted.transform(IMAGES)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).transform(IMAGES), expected)
    with pytest.raises(NotFittedError):
        clone(fitted).transform(IMAGES)
    assert np.array_equal(clone(fitted).fit(IMAGES).transform(IMAGES), expected)


def test_names_of_what_comes_out(fitted: ContrastiveEncoder):
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.transform(IMAGES[:1]).shape[1] == 16 and names[3] == "contrastiveencoder3"
    table = clone(fitted).set_output(transform="pandas").fit(IMAGES).transform(IMAGES)
    assert list(table.columns) == list(names) and table.shape == (96, 16)


# Bad input

FLAT = IMAGES.reshape(96, -1)
BAD = {
    "method": ({"method": "simcrl"}, IMAGES, "Did you mean 'simclr'?"),
    "encoder": ({"encoder": "cn"}, IMAGES, "encoder 'cn' is not known"),
    "recipe": ({"recipe": "sed"}, IMAGES, "Did you mean 'seed'?"),
    "epochs": ({"epochs": 0}, IMAGES, "epochs must be in 1..100000, not 0"),
    "a type": ({"epochs": "ten"}, IMAGES, "epochs"),
    "temperature": ({"method": "vicreg", "temperature": 0.5}, IMAGES, "temperature must be None for method 'vicreg'"),
    "flat": ({}, FLAT, r"X is flat, \(96, 3072\): image_shape must say \(H, W, C\) or \(H, W\)"),
    "shape": ({"image_shape": (32, 32)}, FLAT, r"product of 3072, the columns of X, not \(32, 32\)"),
    "shape of four": ({"image_shape": (2, 4, 4, 96)}, FLAT, "image_shape must be"),
    "fractions": ({}, IMAGES / 255, r"X must be whole numbers, not float64 from 0 to 1: set pixel_range"),
    "range": ({"pixel_range": (0, 1)}, IMAGES, r"Values without a colour in data: X must lie in 0..1, not uint8"),
    "negative": ({}, IMAGES.astype(int) - 9, "Negative values in data: X must lie in 0..255, not int64 from -9"),
    "no range": ({"pixel_range": (1, 1)}, IMAGES, r"pixel_range must be \(black, white\)"),
    "one image": ({}, IMAGES[:1], "at least 2 images, not n_samples=1"),
    "channels": ({}, IMAGES[:, :2], "array 'X' must be uint8"),
    "no pixels": ({}, IMAGES[:, :, :0], r"X must hold images with pixels, not \(96, 3, 0, 32\)"),
    "missing file": ({}, ["no.png", "neither.png"], "no.png' cannot be used: it cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_fitted(case: str):
    settings, X, reason = BAD[case]
    with pytest.raises(InputError, match=reason):
        ContrastiveEncoder(**(FAST | settings)).fit(X)


def test_what_cannot_be_transformed(fitted: ContrastiveEncoder):
    with pytest.raises(InputError, match="X has 2352 features, but ContrastiveEncoder is expecting 3072 features"):
        fitted.transform(IMAGES[:, :, :28, :28])
    with pytest.raises(InputError, match=r"must have 32 × 32 pixels with 3 channels, as in training, not 48 × 64"):
        fitted.transform(np.zeros((2, 48, 64), np.uint8))


def test_pixels_round_to_the_nearest_of_256():
    values = np.array([[0, 0.1, 0.5, 1.0]])
    assert pixels(values, (0, 1)).tolist() == [[0, 26, 128, 255]]
    assert pixels(np.array([[-1.0, 0, 1]]), (-1, 1)).tolist() == [[0, 128, 255]]
