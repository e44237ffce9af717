"""Computes embeddings: a frozen encoder turns each image into a vector."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from crlf import encoders
from crlf.data import UNLABELLED_PART, ImageSet, given, load, load_for_pretraining, load_parts, named, require_there
from crlf.data.encoded import Pixels, threads
from crlf.data.given import Given
from crlf.data.stream import Files, Sets, Source, open_path, require_shape
from crlf.data.thumbnails import sample, thumbnails
from crlf.embedding import on_ray, shards
from crlf.embedding.model import OUT, adopt
from crlf.embedding.table import Writer
from crlf.errors import InputError, unknown
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.normalisation import Normalisation, normalise
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.files import replacing, save_array, save_rows, write_json
from crlf.runs.run import CLASSES, ENCODER, SCORES, TABLE, THUMBNAILS, Run
from crlf.runtime import distributed
from crlf.runtime.devices import pick_device
from crlf.text import duration, say
from crlf.training.state import has_moved, note_move

ENGINES = ("local", "ray")
WORDS = {"train": "training", "test": "test"}


@overload
def embed(
    run: Run | str | Path,
    *,
    model: str = "",
    data: Given | tuple[Given, Given] | str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
) -> Run: ...


@overload
def embed(
    run: Run | str | Path,
    path: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    engine: str = "local",
) -> Path: ...


def embed(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    model: str = "",
    data: Given | tuple[Given, Given] | str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    engine: str = "local",
) -> Run | Path:
    """Embed the training and test images of a run with its frozen encoder, or the new images at PATH.

    Writes train_emb.npy and test_emb.npy, float32 (N, D), the output of the frozen encoder without the projector. Row i
    belongs to image i of the data set, whose name (for files the relative path) is entry i of train_ids.json or
    test_ids.json. With labels, it also writes train_lbl.npy and test_lbl.npy, int64 (N,), and classes.json; without
    labels the test set may be empty. If all images are tested by cross-validation (`ImageSettings.hold_out`), both
    splits hold the same images, and scores.json says cross_validated. embeddings.parquet holds everything in one table,
    each image once, including the unlabelled images of a partly labelled folder. thumbnails.npy is for the report, see
    `crlf.data.thumbnails`.

    Args:
        run: the run; with --model, the images: a folder, or anything else that `crlf pretrain` accepts.
        path: new images: a folder, an image, or anything else that `crlf pretrain` accepts. They are prepared like the
            training images. The run does not change.
        model: a trained model to embed with, without any training: timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, a run
            folder or an .onnx file. This makes a run from the images in the folder --out.
        data: the new path of the run's images, if they were moved; they must be the same images. In Python, for a run
            that was given arrays: the training images, or (train, test).
        out: for new images, the .parquet table to write, with the embeddings alone in a .npy file beside it; by default
            named after PATH, in the current folder. With --model, the run folder.
        overwrite: replace existing files of these names.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the best available.
        batch_size: images per batch.
        engine: where to embed new images: local, or ray for a Ray cluster. With ray, --out is a folder of tables of
            100,000 rows, with the same ids and embeddings.

    Returns:
        The run, or for new images the path of the table.

    Raises:
        InputError: the folder holds no trained run, the images do not fit it, or a file cannot be written.
    """
    if model:
        if path is not None or isinstance(run, Run):
            raise InputError("model embeds images without a run: `crlf embed PATH --model NAME --out RUN`")
        run, out = adopt(run, model, out=out or OUT, data_dir=data_dir, device=device, overwrite=overwrite), None
    run, place = Run.open(run), distributed.own_device(pick_device(device))
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    if isinstance(data, str | Path) and path is None:
        find_again(run, named(str(data)), data_dir)
        data = None
    if isinstance(data, str | Path):
        raise InputError(f"data {str(data)!r} is for the run's own images, but a path of new images is given too")
    if data is not None and (path is not None or not given.is_given(run.recipe.data)):
        raise InputError("data is for a run whose images were given as arrays: name other images by their path")
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if path is not None and engine == "ray":
        place_of_tables = Path(out or Path(shards.named_after(path)).with_suffix(""))
        return embed_on_ray(run, str(path), place_of_tables, overwrite, data_dir, device, batch_size)
    if path is not None:
        return embed_new(run, str(path), Path(out or shards.named_after(path)), overwrite, data_dir, place, batch_size)
    if engine != "local":
        raise InputError(f"engine {engine!r} is for new images, but no path is given")
    if out is not None:
        raise InputError(f"out {str(out)!r} is for new images, but no path is given; a run's own go to its folder")
    if distributed.rank() > 0:
        return run  # one process writes the run's own files
    return embed_own(run, data, data_dir, place, batch_size)


def find_again(run: Run, data: str, data_dir: str | Path | None) -> None:
    """Note the new path of a run's images.

    Raises:
        InputError: the images differ, or the run has no checkpoint to compare them with.
    """
    recipe = run.recipe
    if data == recipe.data:
        return
    images = load_for_pretraining(data, data_dir, recipe.images, recipe.subset)
    if not has_moved(run, data, images):
        why = "its checkpoint has others" if checkpoints.kept(run) else "it has no checkpoint to compare them with"
        raise InputError(f"images of {data!r} must be those of {recipe.data!r} in the run {str(run.path)!r}: {why}")
    note_move(run, data)


def embed_own(
    run: Run,
    data: Given | tuple[Given, Given] | None,
    data_dir: str | Path | None,
    place: torch.device,
    batch_size: int,
) -> Run:
    """Embed the training and the test images of a run."""
    recipe = run.recipe
    start = time.perf_counter()
    if data is None:
        require_there(recipe.data)
        splits = load_parts(recipe.data, data_dir, recipe.images, recipe.subset)
    else:
        learned = issubclass(METHODS[recipe.method], SupervisedMethod)
        both = given.both(data, recipe.images, recipe.subset, learned)
        splits = dict(zip(("train", "test"), both, strict=True))
        for part in splits.values():
            require_shape(part.images.shape[1:], image_shape(run), "images in data")
    beside = splits.pop(UNLABELLED_PART, None)
    shape = splits["train"].images.shape[1:]
    encoder = load_encoder(run, recipe, shape).to(place)
    same = splits["test"] is splits["train"]
    run.forget_score("cross_validated")
    run.update_scores(image_shape=list(shape), **({"cross_validated": True} if same else {}))
    with replacing(run.file(TABLE)) as file, Writer(file, encoder.out_dim, recipe.data) as table:
        for name, split in splits.items():
            if same and name == "test":  # embedded, and in the table, once
                with run.file("train_emb.npy").open("rb") as rows_there, replacing(run.file("test_emb.npy")) as copy:
                    shutil.copyfileobj(rows_there, copy)
                keep_beside(run, name, split)
                continue
            rows = embedded(encoder, split.images, recipe.normalisation, batch_size)
            save_rows(run.file(f"{name}_emb.npy"), len(split), noted(rows, split, name, table))
            keep_beside(run, name, split)
        if beside is not None:  # in the table alone: in the arrays all images have labels, or none has
            for _ in noted(embedded(encoder, beside.images, recipe.normalisation, batch_size), beside, None, table):
                pass
    seconds = time.perf_counter() - start
    run.update_scores(embed_seconds=seconds, protocol={"embedding": protocol(recipe)})
    counts = " and ".join(f"{len(split):,} {WORDS[name]}" for name, split in splits.items())
    where = f"{str(run.file('train_emb.npy'))!r}, test_emb.npy and {TABLE}"
    say(f"embedded {counts} images in {duration(seconds)}, length {encoder.out_dim}: {where}")
    return run


def noted(rows: Iterator[np.ndarray], split: ImageSet, name: str | None, table: Writer) -> Iterator[np.ndarray]:
    """Pass the rows on and add each batch to the table. Raises InputError if the file of the images has changed."""
    done = 0
    for part in rows:
        split.require_unchanged()
        here = slice(done, done + len(part))
        labels = None if split.labels is None else split.labels[here].numpy()
        table.add(split.ids[here], part, name, labels, split.classes)
        done += len(part)
        yield part


def keep_beside(run: Run, name: str, split: ImageSet) -> None:
    """Write the names, labels, classes and thumbnails that belong to the embeddings of a split."""
    write_json(run.file(f"{name}_ids.json"), list(split.ids))
    if split.labels is not None:
        save_array(run.file(f"{name}_lbl.npy"), split.labels.numpy())
        write_json(run.file(CLASSES), list(split.classes))
    if len(split):  # the test split comes last, and replaces the training images if it has any
        small = thumbnails(split.images)
        save_rows(run.file(THUMBNAILS), len(sample(len(split))), (one[None] for one in small))


def embed_new(
    run: Run, path: str, out: Path, overwrite: bool, data_dir: str | Path | None, place: torch.device, batch_size: int
) -> Path:
    """Embed new images on all ranks, and print what was written."""
    shards.require_free(out, overwrite, Path(os.path.expanduser(path)))
    recipe, shape = run.recipe, image_shape(run)
    encoder = load_encoder(run, recipe, torch.Size(shape)).to(place)

    def embed_batch(images: Tensor) -> np.ndarray:
        return embed_images(encoder, images, recipe.normalisation, batch_size)

    with distributed.together(shards.ADVICE):
        with distributed.first_alone():  # the others find what it indexes or decodes
            source = open_source(path, shape, recipe, data_dir)
        rows, skipped = shards.write(source, embed_batch, encoder.out_dim, out, named(path), batch_size)
    if distributed.rank() == 0:
        table, array, listed = map(str, shards.beside(out))
        print(f"{rows:,} embeddings of length {encoder.out_dim}: {table!r} and {array!r}")
        if skipped:
            print(f"files skipped: {skipped:,}, listed in {listed!r}")
    return out


def embed_on_ray(
    run: Run, path: str, out: Path, overwrite: bool, data_dir: str | Path | None, device: str, batch_size: int
) -> Path:
    """Embed new images on the workers of a Ray cluster, and print what was written."""
    on_ray.require_free(out, overwrite)
    recipe, shape = run.recipe, image_shape(run)
    encoder = load_encoder(run, recipe, torch.Size(shape))
    source = open_source(path, shape, recipe, data_dir)
    again = functools.partial(open_source, path, shape, recipe, data_dir)
    read = on_ray.Reading(source if isinstance(source, Files) else again, len(source), batch_size)
    turn = on_ray.Turning(encoder, recipe.normalisation, device, embed_images, torch.get_num_threads())
    rows, skipped = on_ray.write(read, turn, out, named(path))
    print(f"{rows:,} embeddings of length {encoder.out_dim}: {str(out)!r}")
    if skipped:
        print(f"files skipped: {skipped:,}, listed in {str(out / on_ray.SKIPPED)!r}")
    return out


def open_source(path: str, shape: Sequence[int], recipe: Recipe, data_dir: str | Path | None) -> Source:
    """New images in the shape of the training images: streamed from a path, or loaded from any other source."""
    source = open_path(path, shape, recipe.images, threads())
    return source or Sets(path, *load(path, data_dir, recipe.images), shape)


def image_shape(run: Run) -> tuple[int, int, int]:
    """The shape of the images that a run was trained on: (C, H, W).

    Raises:
        InputError: the run is not trained, or is an older one without this entry in scores.json.
    """
    shape = run.scores.get("image_shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)):
        path = str(run.path)
        raise InputError(f"{str(run.file(SCORES))!r} has no image_shape: `crlf embed {path}` adds it")
    return shape[0], shape[1], shape[2]


def protocol(recipe: Recipe) -> str:
    n = recipe.embedding.regions
    where = "over the whole image" if n == 1 else f"over each of {n} x {n} regions"
    what = f"the frozen encoder's maps averaged {where}"
    if not encoders.has_regions(recipe.encoder):
        what = "the frozen encoder's output"
    return what + ", mean of image and mirror image" * recipe.embedding.mirror


def load_encoder(run: Run, recipe: Recipe, shape: torch.Size) -> encoders.Frozen:
    """The trained encoder of a run, frozen, for images of this shape (C, H, W)."""
    encoder = encoders.build(recipe.encoder, shape[0], min(shape[1:]), recipe.embedding.regions)
    try:
        encoder.load_state_dict(run.tensors(ENCODER))
    except (RuntimeError, TypeError, AttributeError) as error:
        path = str(run.file(ENCODER))
        raise InputError(
            f"{path!r} does not fit the encoder {recipe.encoder!r}: {str(error).splitlines()[0]}"
        ) from error
    return encoders.Frozen(encoder, recipe.embedding.mirror)


def embed_images(encoder: nn.Module, images: Pixels, by: Normalisation, batch_size: int = 500) -> np.ndarray:
    """Embed images without augmentation: uint8 (N, C, H, W) on any device -> float32 (N, D); row i is image i.

    The encoder must be in evaluation mode, so that no batch-norm statistic changes and a row does not depend on the
    other images.
    """
    return np.concatenate(list(embedded(encoder, images, by, batch_size)))


@torch.no_grad()
def embedded(encoder: nn.Module, images: Pixels, by: Normalisation, batch_size: int) -> Iterator[np.ndarray]:
    """As `embed_images`, batch by batch, so that neither the images nor the rows need to fit in memory."""
    assert not encoder.training, "a frozen encoder is in evaluation mode"
    device = next(encoder.parameters()).device
    if not len(images):  # many networks fail on an empty batch
        one = torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device=device)
        yield encoder(normalise(one, by)).float().cpu().numpy()[:0]  # (0, D)
        return
    done = 0
    for batch in images.split(batch_size):
        rows = encoder(normalise(batch.to(device), by)).float().cpu().numpy()
        if not np.isfinite(rows).all():
            row = done + int(np.isfinite(rows).all(axis=1).argmin())
            raise InputError(
                f"the embedding of image {row} is not finite: the encoder's weights are damaged or diverged"
            )
        done += len(rows)
        yield rows
