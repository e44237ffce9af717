"""CIFAR-100, STL-10 and SVHN: from their official forms, and only if these are right."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import terminal
import tiny_cifar
import torch
import torchvision
from sampling import some
from test_data import cache as cache  # an empty cache for each test here too
from test_data import snapshot
from tiny_official import TINY, Tiny, matlab

import crlf.data
from crlf.data.datasets import cifar, official, stl10, svhn
from crlf.embedding.embed import embed
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.training.pretrain import pretrain


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


def load(tiny: Tiny, data_dir: Path | None, spec: official.Official | None = None) -> list[crlf.data.ImageSet]:
    """All splits, each as a user would have it."""
    sets = list(tiny.load(data_dir, spec or tiny.spec))
    return [*sets, stl10.unlabelled(data_dir, spec or tiny.spec)] if "unlabelled" in tiny.spec.batches else sets


def assert_is(tiny: Tiny, loaded: list[crlf.data.ImageSet]) -> None:
    for split, data in zip(tiny.spec.batches, loaded, strict=True):
        assert np.array_equal(data.images.numpy(), tiny.arrays[f"{split}_images"])
        assert list(data.ids) == [f"{split}/{i:05}" for i in range(len(data))]
        if split == "unlabelled":
            assert data.labels is None and data.classes == ()
        else:
            assert data.labels is not None and data.classes == tiny.spec.classes
            assert np.array_equal(data.labels.numpy(), tiny.arrays[f"{split}_labels"])


def refused(tiny: Tiny, data_dir: Path) -> str:
    """The one line of the InputError that loading raises."""
    with pytest.raises(InputError) as error:
        load(tiny, data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


def unanswered(tiny: Tiny, spec: official.Official | None = None) -> str:
    with pytest.raises(InputError) as error:
        load(tiny, None, spec)
    return str(error.value)


# The forms


@pytest.mark.parametrize("form", ["files", "files inside", "archive", "archive inside"])
def test_every_form_holds_the_same(form: str, tiny: Tiny, tmp_path: Path, cache: Path):
    folder = tmp_path / "given"
    folder.mkdir()
    if form.startswith("files"):
        path = tiny.write_files(folder / tiny.spec.folder if "inside" in form else folder)
    else:
        path = tiny.write_archive(folder / ((tiny.spec.url.split("/")[-1] or "x") if "inside" in form else "my copy"))
    before = snapshot(folder)
    for _ in range(2):
        assert_is(tiny, load(tiny, folder if "inside" in form else path))
    assert snapshot(folder) == before  # what the user names is only read
    if "archive" in form or tiny.spec.slow:
        assert_is(tiny, load(tiny, None))  # it was kept, and no source is needed
        assert_is(tiny, load(tiny, cache))
    else:
        assert not cache.exists()


def test_a_file_of_svhn_stands_for_its_folder(tmp_path: Path):
    tiny = TINY["svhn"]
    assert_is(tiny, load(tiny, tiny.write_files(tmp_path) / "test_32x32.mat"))


def test_a_cache_that_cannot_be_written_does_not_hinder_an_archive(tiny: Tiny, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CRLF_CACHE", str(tmp_path / "file" / "cache"))
    assert_is(tiny, load(tiny, tiny.write_archive(tmp_path / "archive")))


def test_where_official_names_and_checksums_come_from():
    for ours, theirs in ((cifar.CIFAR100, torchvision.datasets.CIFAR100), (stl10.STL10, torchvision.datasets.STL10)):
        assert (ours.url, ours.md5, ours.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
        assert ours.files_md5 == {name: md5 for name, md5 in [*theirs.train_list, *theirs.test_list]}
    for split, names in svhn.SVHN.batches.items():
        url, name, md5 = torchvision.datasets.SVHN.split_list[split]
        assert (svhn.SVHN.url + names[0], names[0], svhn.SVHN.files_md5[names[0]]) == (url, name, md5)
    for spec in (cifar.CIFAR100, stl10.STL10, svhn.SVHN):
        assert set(spec.files_md5) == {name for names in spec.batches.values() for name in names}


def test_the_fine_classes():
    assert len(set(cifar.FINE)) == 100 and sorted(cifar.FINE) == list(cifar.FINE)


def unchecked(theirs: type) -> type:
    """A data set of torchvision without its checksums, which are those of the real files."""
    return type("Reference", (theirs,), {"_check_integrity": lambda self: True})


def test_torchvision_reads_the_same(tmp_path: Path):
    for name, theirs in (("stl10", torchvision.datasets.STL10), ("svhn", torchvision.datasets.SVHN)):
        tiny = TINY[name]
        tiny.write_files(tmp_path / tiny.spec.folder)
        for split, ours in zip(("train", "test", "unlabeled"), load(tiny, tmp_path), strict=False):
            reference = unchecked(theirs)(str(tmp_path), split=split)
            assert np.array_equal(reference.data, ours.images)
            assert ours.labels is None or np.array_equal(reference.labels, ours.labels)


def test_torchvision_reads_the_same_cifar100(tmp_path: Path):
    tiny = TINY["cifar100"]
    folder = tiny.write_files(tmp_path / "cifar-100-python")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(cifar.FINE)}))
    reference = unchecked(torchvision.datasets.CIFAR100)
    reference.meta = torchvision.datasets.CIFAR100.meta | {"md5": None}
    for train, ours in zip((True, False), load(tiny, tmp_path), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy 2.4 dislikes how a batch of 2009 tells its dtype
            theirs = reference(str(tmp_path), train=train)
        assert np.array_equal(theirs.data, ours.images.permute(0, 2, 3, 1))
        assert ours.labels is not None and theirs.targets == ours.labels.tolist()
        assert tuple(theirs.classes) == ours.classes


# What is wrong


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "emptied"])
def test_a_damaged_file_is_named(damage: str, tiny: Tiny, tmp_path: Path, cache: Path):
    folder = tiny.write_files(tmp_path / "given")
    for name, data in tiny.files.items():
        (folder / name).unlink()
        if damage != "missing":
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            (folder / name).write_bytes({"cut": data[:-1], "flipped": flipped, "emptied": b""}[damage])
        line = refused(tiny, folder)
        expected = f"{name} is missing" if damage == "missing" else f"the MD5 of {name} is "
        assert line.startswith(f"{tiny.spec.title} in '{folder}' cannot be used: {expected}")
        (folder / name).write_bytes(data)
    assert not cache.exists() and load(tiny, folder)


@pytest.mark.parametrize("damage", ["cut", "flipped", "another", "one member less", "nothing"])
@pytest.mark.parametrize("name", ["cifar100", "stl10"])
def test_a_damaged_archive_is_named(damage: str, name: str, tmp_path: Path, cache: Path):
    tiny, path = TINY[name], tmp_path / "archive"
    data = tiny.write_archive(path).read_bytes()
    if damage == "another":
        tiny_cifar.tar(path, tiny_cifar.official_files())
    elif damage == "one member less":
        others = list(tiny.files)[1:]
        tiny_cifar.tar(path, {f"{tiny.spec.folder}/{other}": tiny.files[other] for other in others})
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:middle], "flipped": flipped, "nothing": b""}[damage])
    line = refused(tiny, path)
    assert line.startswith(f"{tiny.spec.title} in '{path}' cannot be used: ") and not cache.exists()
    expected = {"another": "it has no member", "one member less": "its member", "nothing": "cannot be read as a tar"}
    assert expected.get(damage, "") in line


def test_a_folder_of_other_things(tiny: Tiny, tmp_path: Path):
    for name in ("train", "test"):  # folders, as in a data set of pictures
        (tmp_path / "given" / name).mkdir(parents=True)
    line = refused(tiny, tmp_path / "given")
    assert f"holds no {tiny.spec.title}: it must hold" in line
    assert (tiny.spec.folder or "train_32x32.mat and test_32x32.mat") in line
    assert "does not exist" in refused(tiny, tmp_path / "typo")


def test_the_command_line_ends_with_2(tiny: Tiny, tmp_path: Path):
    """For the real data sets, the tiny files are damaged."""
    folder, out = tiny.write_files(tmp_path / "given"), tmp_path / "run"
    arguments = ["pretrain", "--data", tiny.spec.name, "--data-dir", str(folder), "--out", str(out)]
    line = terminal.refused(*arguments)
    assert str(folder) in line and "MD5" in line and not out.exists()


def test_other_bytes_are_no_images():
    for decode, files, why in (
        (stl10.decode, [("x", bytes(27647))], "x cannot be read as images of STL-10"),
        (stl10.decode, [("x", bytes(27648)), ("y", b"")], "1 images have 0 labels"),
        (stl10.decode, [("x", bytes(27648)), ("y", b"\0")], "in 1..256"),
        (stl10.decode, [("x", bytes(27648)), ("y", b"\x0b")], "in 1..11"),
        (svhn.decode, [("x", b"")], "x cannot be read as a MATLAB file"),
        (svhn.decode, [("x", b"no MATLAB file" * 99)], "x cannot be read as a MATLAB file"),
        (svhn.decode, [("x", matlab(np.zeros((3, 3, 32, 32)), np.zeros(2)))], "y has 2 labels"),
    ):
        with pytest.raises(InputError, match=why):
            decode(files)


# The cache


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        """Quiet."""


@pytest.fixture
def served(tiny: Tiny, tmp_path: Path) -> Iterator[tuple[official.Official, Path]]:
    """The data set at an address of this machine, and the folder that is served there."""
    folder = tmp_path / "served"
    folder.mkdir()
    archive = tiny.write_archive(folder / tiny.spec.url.split("/")[-1] if tiny.spec.md5 else folder / "x")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if tiny.spec.md5 else ""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{tiny.spec.url.split('/')[-1]}"
        yield dataclasses.replace(tiny.spec, url=url, md5=md5), folder
        server.shutdown()
        thread.join()


def test_a_download_is_kept_decoded(tiny: Tiny, served: tuple[official.Official, Path], cache: Path):
    spec, folder = served
    assert_is(tiny, load(tiny, None, spec))
    for file in folder.iterdir():
        file.unlink()
    assert_is(tiny, load(tiny, None, spec))
    assert set(snapshot(cache)) == {f"{spec.name}/{key}.npy" for key in tiny.arrays} | {f"{spec.name}/sha256.json"}
    told = json.loads((cache / spec.name / "sha256.json").read_bytes())
    assert told == {"data": spec.name} | {
        key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in tiny.arrays.items()
    }


@pytest.mark.parametrize("damage", some(["flipped", "cut", "missing"]))
def test_a_damaged_cache_is_fetched_again(damage: str, tiny: Tiny, served, cache: Path, capsys):
    spec, _ = served
    load(tiny, None, spec)
    whole = snapshot(cache)
    for file in sorted((cache / spec.name).iterdir()):
        data = file.read_bytes()
        file.unlink()
        if damage != "missing":
            at = data.rindex(b'"') - 5 if file.suffix == ".json" else len(data) - 1
            file.write_bytes(data[:at] + (b"" if damage == "cut" else bytes([data[at] ^ 1]) + data[at + 1 :]))
        before = snapshot(cache)
        assert f"{tiny.spec.title} could not be downloaded" in unanswered(tiny) and snapshot(cache) == before
        assert "cannot be used: " in refused(tiny, cache)
        capsys.readouterr()
        assert_is(tiny, load(tiny, None, spec))
        assert "downloading it again" in capsys.readouterr().err and snapshot(cache) == whole


def test_one_data_set_is_not_taken_for_another(tmp_path: Path, cache: Path):
    load(TINY["svhn"], TINY["svhn"].write_files(tmp_path / "given"))
    assert "it is of 'svhn', not 'cifar100'" in refused(TINY["cifar100"], cache / "svhn")


def test_another_file_at_the_address_is_refused(tiny: Tiny, served, cache: Path):
    spec, folder = served
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes() + b"more")
    assert "it is another file" in unanswered(tiny, spec) and list(cache.iterdir()) == []
    for file in folder.iterdir():
        file.unlink()
    assert "HTTP Error 404" in unanswered(tiny, spec) and list(cache.iterdir()) == []


def test_what_to_do_when_no_source_answers(tiny: Tiny):
    last = unanswered(tiny).splitlines()[-1]
    assert tiny.spec.url in last and "--data-dir" in last and "npm" not in last


def test_large_arrays_are_mapped(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(official, "MAPPED", 100_000)
    tiny = TINY["stl10"]
    assert_is(tiny, load(tiny, tiny.write_archive(tmp_path / "archive")))
    arrays = official.read(crlf.data.cache_dir() / "stl10", official.read_decoded, tiny.spec, ["unlabelled"])
    array = arrays["unlabelled_images"]
    assert isinstance(array.base, np.memmap)
    array[0] = 0  # a change stays in memory
    assert_is(tiny, load(tiny, None))


# What is learned from


def test_pretraining_takes_the_images_without_labels(tmp_path: Path, monkeypatch):
    tiny = TINY["stl10"]
    folder = tiny.write_files(tmp_path / "given")
    monkeypatch.setitem(crlf.data.SOURCES, "stl10", functools.partial(stl10.load, spec=tiny.spec))
    monkeypatch.setitem(crlf.data.UNLABELLED, "stl10", functools.partial(stl10.unlabelled, spec=tiny.spec))
    unlabelled = crlf.data.load_for_pretraining("stl10", folder)
    assert unlabelled.labels is None and len(unlabelled) == 6
    train = crlf.data.load("shapes")[0]
    assert torch.equal(crlf.data.load_for_pretraining("shapes").images, train.images)
    recipe = Recipe(data="stl10", batch_size=6, views=2, epochs=1)  # the 4 training images would be too few
    run = embed(pretrain(recipe, out=tmp_path / "run", data_dir=folder, device="cpu"), data_dir=folder, device="cpu")
    assert len(np.load(run.file("train_emb.npy"))) == 4 and len(np.load(run.file("test_emb.npy"))) == 5
    assert np.array_equal(np.load(run.file("test_lbl.npy")), tiny.arrays["test_labels"])
