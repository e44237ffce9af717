"""Maps and thumbnails: neighbours, clusters and pictures are the right ones, and are kept for these embeddings only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from tiny_run import fake_run

from crlf.data.thumbnails import sample, thumbnails
from crlf.errors import InputError
from crlf.evaluation import logistic_regression
from crlf.runs.files import save_array, save_tensors
from crlf.runs.run import ENCODER, MAPS
from crlf.visualization.figures import projections
from crlf.visualization.figures.views_and_filters import first_filters


def rows(n: int = 300, D: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)


def test_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch):
    unit = projections.unit(rows(1500)).numpy()  # more than one block
    near, cosine = projections.neighbours(unit, 8)
    distance, expected = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(unit).kneighbors(unit)
    assert (near == expected[:, 1:]).mean() > 0.999  # ties
    assert cosine == pytest.approx(1 - distance[:, 1:], abs=1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_few_images_have_as_many_neighbours_as_there_are(n: int):
    made = projections.chart(rows(n), 10)
    assert made["near"].shape == (n, n - 1)
    assert ("tsne" in made) == (n == 3)


def test_clusters_are_those_that_are_there_the_largest_first():
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    centres = np.eye(3)[truth] * 5
    found = projections.cluster(projections.unit(centres + 0.1 * rows(100, 3)).numpy(), 3)
    assert adjusted_rand_score(truth, found) == 1
    assert (found == truth).all()


def test_maps_are_kept_until_the_embeddings_change(tmp_path: Path):
    run = fake_run(tmp_path, n=40)
    first = projections.maps(run)
    before = run.file(MAPS).read_bytes()
    again = projections.maps(run)
    assert run.file(MAPS).read_bytes() == before
    assert all((first[name] == again[name]).all() for name in first)
    save_array(run.file("test_emb.npy"), run.array("test_emb.npy")[::-1])
    assert not np.allclose(projections.maps(run)["pca"], first["pca"])


def test_a_smaller_sample_begins_a_larger_one():
    assert (sample(20_000, 50) == sample(20_000)[:50]).all()
    assert len(sample(20_000)) == 10_000 and sorted(sample(7)) == list(range(7))


def test_thumbnails_of_small_images_are_the_images():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 12), dtype=np.uint8)
    found = np.stack(list(thumbnails(images)))
    assert (found == images[sample(20)].transpose(0, 2, 3, 1)).all()
    gray = np.stack(list(thumbnails(images[:, :1])))
    assert (gray == images[sample(20), 0][..., None]).all() and gray.shape == (20, 16, 12, 3)


def test_thumbnails_of_large_images_are_scaled_and_keep_their_shape():
    halves = np.zeros((3, 3, 100, 200), dtype=np.uint8)
    halves[..., 100:] = 200
    found = np.stack(list(thumbnails(halves)))
    assert found.shape == (3, 32, 64, 3)
    assert (found[:, :, :28] == 0).all() and (found[:, :, 36:] == 200).all()


def test_probabilities_are_a_column_a_label_and_say_what_is_predicted():
    x, y = rows(200, 5), np.random.default_rng(1).choice([0, 2, 5], 200)
    model = logistic_regression.fit_linear(x, y, 1.0)
    found = model.probabilities(x)
    assert found.shape == (200, 6) and found.dtype == np.float32
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (found[:, [1, 3, 4]] == 0).all()
    assert (found.argmax(axis=1) == model.predict(x)).all()


def test_first_filters_are_the_first_convolution_scaled(tmp_path: Path):
    run = fake_run(tmp_path)
    weights = run.tensors(ENCODER)["stem.weight"].numpy()
    found = first_filters(run).astype(float)
    assert found.shape == weights.shape
    scaled = weights / np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    assert np.abs((found - 128) / 127 - scaled).max() < 0.01


def test_an_encoder_without_convolution_has_no_filters(tmp_path: Path):
    run = fake_run(tmp_path)
    save_tensors(run.file(ENCODER), {"weight": torch.zeros(4, 4)})
    with pytest.raises(InputError, match="does not begin with a convolution"):
        first_filters(run)
