"""The measurement on photographs: the protocol of small sets, the rows that resume, what is read out of packages."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import stat
import struct
import sys
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench.photos import (
    ablation,
    contestants,
    deep_sky,
    imagenet,
    main,
    packages,
    protocol,
    qt_resources,
    results,
    sets,
)
from bench.photos.packages import Package
from bench.photos.sets import Photograph, PhotoSet
from crlf.augmentation import ViewSettings
from crlf.data import ImageSet
from crlf.errors import InputError
from crlf.evaluation import cross_validation
from crlf.evaluation.cross_validation import folds_of, same
from crlf.metrics.intervals import paired_interval
from crlf.metrics.knn import knn_predict
from crlf.recipe import Recipe


def noise(sizes=(12, 30, 21, 10), width=20, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(seed)
    return random.standard_normal((len(labels), width)).astype(np.float32), random.permutation(labels)


# The protocol


def test_the_folds_are_those_of_the_probes_and_others_for_each_seed():
    emb, labels = noise()
    for seed in (0, 1):
        folds = folds_of(labels, same(emb), seed)
        probe, _ = cross_validation.fit(emb, labels, folds)
        assert np.array_equal(protocol.cross_validated(emb, labels, seed), probe.predict(emb) == labels)
        for size, inside in zip(np.bincount(labels), (np.bincount(folds[labels == k]) for k in range(4)), strict=True):
            assert sum(inside) == size and max(inside) - min(inside) <= 1
    assert not np.array_equal(*(folds_of(labels, same(emb), seed) for seed in (0, 1)))


def test_what_cannot_be_learned_is_not():
    """Noise: a probe that had seen the labels that it is tested on would be right far more often than by chance."""
    emb, labels = noise((60, 60, 60), width=200)
    found = protocol.measure(emb, labels, 0)
    for name, right in zip(found._fields, found, strict=True):
        assert abs(np.nanmean(right) - 1 / 3) < 0.12, name


def test_what_lies_apart_is_told_apart():
    emb, labels = noise(width=6)
    emb[np.arange(len(labels)), labels] += 20
    found = protocol.measure(emb, labels, 0)
    assert found.linear.all() and found.knn.all() and np.nanmin(found.few) == 1


def test_knn_leaves_out_the_image_itself_and_nothing_else():
    emb, labels = noise()
    by_hand = []
    for row in range(len(emb)):
        rest = np.delete(np.arange(len(emb)), row)
        by_hand.append(knn_predict(emb[rest], labels[rest], emb[row : row + 1], k=9)[0] == labels[row])
    assert protocol.neighbours(labels) == 9
    assert np.array_equal(protocol.leave_one_out(emb, labels), np.array(by_hand, dtype=float))


def test_no_copy_votes():
    """Each image twice: of noise, whoever asked its copy would always be right."""
    emb, labels = (np.concatenate([part, part]) for part in noise())
    assert protocol.leave_one_out(emb, labels).mean() < 0.6


@pytest.mark.parametrize(("sizes", "k"), [((50, 40), 10), ((11, 40), 10), ((10, 40), 9), ((6, 40), 5)])
def test_k_is_ten_or_all_others_of_the_smallest_class(sizes, k):
    assert protocol.neighbours(np.repeat([0, 1], sizes)) == k


def test_few_labels_test_only_images_without_one(monkeypatch):
    emb, labels = noise()
    seen = []

    def fit(x, y, test):
        seen.append(len(test))
        assert np.bincount(y).tolist() == [5] * 4 and len(x) + len(test) == len(emb)
        assert not {tuple(row) for row in x} & {tuple(row) for row in test}
        return type("Result", (), {"predictions": np.zeros(len(test), dtype=int)})

    monkeypatch.setattr(protocol, "linear", fit)
    right = protocol.few_labels(emb, labels, 0)
    assert len(seen) == protocol.DRAWS
    tested = ~np.isnan(right)
    assert np.array_equal(right[tested], (labels[tested] == 0).astype(float))


# The rows and the table


def correct(linear, knn=None, few=None) -> protocol.Correct:
    one = np.array(linear, dtype=float)
    return protocol.Correct(one, one if knn is None else np.array(knn, float), one if few is None else np.array(few))


def row(who: str, seed: int, *right, name: str = "a", size: int = 64):
    about = {"set": name, "contestant": who, "seed": seed, "classes": 2, "k": 1, "image_size": size}
    return {**about, **results.row_of(correct(*right))}


def test_a_row_holds_what_was_right():
    found = correct([1, 0, 1], [0, 0, 1], [0.5, np.nan, 1.0])
    kept = json.loads(json.dumps(results.row_of(found)))
    for probe in results.PROBES:
        assert np.array_equal(results.right(kept, probe), getattr(found, probe), equal_nan=True)


def test_a_line_that_was_cut_off_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, {"seed": 0})
    path.write_bytes(path.read_bytes() + b'{"seed": 1, "lin')
    assert results.read(path) == [{"seed": 0}]
    results.append(path, {"seed": 2})
    assert results.read(path) == [{"seed": 0}, {"seed": 2}]


def test_an_image_counts_with_its_share_of_the_seeds():
    found = results.Results([row("pixels", 0, [1, 1, 0]), row("pixels", 1, [1, 0, 0], None, [np.nan, 0.0, 0.0])])
    assert found.images("a", "pixels", "linear").tolist() == [1, 0.5, 0]
    assert found.images("a", "pixels", "few").tolist() == [1, 0.5, 0]


def test_a_difference_is_paired():
    """Against the bootstrap of crlf: the same images, and so an interval far narrower than two of one accuracy."""
    random = np.random.default_rng(0)
    a = random.random(600) < 0.6
    b = a ^ (random.random(600) < 0.1)
    found = results.Results([row("pixels", 0, a), row("crlf 5", 0, b)])
    difference = found.difference("a", "crlf 5", "pixels", "linear")
    low, high = paired_interval(a, b)
    assert difference.points == pytest.approx(100 * (b.mean() - a.mean()))
    assert difference.points - difference.half == pytest.approx(100 * low, abs=0.3)
    assert difference.points + difference.half == pytest.approx(100 * high, abs=0.3)
    assert difference.half < results.mean(a.astype(float)).half


def test_sets_together_weigh_the_same():
    assert results.together([results.Mean(2, 3), results.Mean(4, 4)]) == results.Mean(3, 2.5)


def test_a_star_says_that_zero_lies_outside():
    assert results.Mean(-2.0, 1.5).signed == "−2.0 ± 1.5 *" and results.Mean(1.0, 1.5).signed == "+1.0 ± 1.5"


def test_the_better_readout_of_the_network_at_the_same_size_is_compared():
    some, most, all_right = [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]
    found = results.Results(
        [
            row("crlf 5", 0, most),
            row("imagenet 64", 0, some),
            row("imagenet 64 regions", 0, most),
            row("imagenet 128", 0, all_right, size=128),
            row("untrained", 0, some),
        ]
    )
    assert found.imagenet("a", 64) == "imagenet 64 regions" and found.imagenet("a") == "imagenet 128"
    assert found.imagenet("a", 96) is None
    said = results.markdown(found)
    assert "| imagenet 128 | 128 | 1 | 100.0 ± 0.0 |" in said
    lines = [line for line in said.splitlines() if "ImageNet, same size (imagenet 64 regions)" in line]
    assert lines and "+0.0 ± 0.0" in lines[0]
    assert re.search(r"\| all sets \| untrained \| \+25\.0", said)


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    emb, labels = noise()
    calls = []

    def embed(name, seed):
        calls.append((name, seed))
        return contestants.Embedded(emb, labels, {"image_size": 16})

    monkeypatch.setattr(main, "contestant", lambda who: embed)
    rows = tmp_path / "rows.jsonl"
    words = ["--sets", "foods", "--contestants", "pixels", "--rows", str(rows), "--seeds"]
    assert main.main([*words, "0"]) == 0 and main.main([*words, "0,1"]) == 0
    assert calls == [("foods", 0), ("foods", 1)] and len(results.read(rows)) == 2
    assert "| pixels | 16 | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "food"], "Did you mean 'foods'?"),
        (["--contestants", "imagenet"], "imagenet"),
        (["--contestants", "crlf five"], "crlf"),
        (["--seeds", "one"], "whole numbers"),
    ],
)
def test_a_wrong_word_ends_it_before_the_first_row(words, said, tmp_path):
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match=re.escape(said)):
        main.main([*words, "--rows", str(rows)])
    assert not rows.exists()


def test_other_settings_are_nested():
    found = contestants.nested(["images.image_size=64", "optim.lr=0.01", "encoder=resnet18", "embedding.mirror=false"])
    assert found == {
        "images": {"image_size": 64},
        "optim": {"lr": 0.01},
        "encoder": "resnet18",
        "embedding": {"mirror": False},
    }


# A small set, from beginning to end


def colours(count=14):
    """Photographs of three colours, with noise."""
    random = np.random.default_rng(0)
    for label, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40)), ("blue", (40, 40, 200))):
        for number in range(count):
            pixels = np.clip(random.normal(colour, 60, (40, 40, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((60, 40)).save(buffer, "png")
            yield Photograph(label, f"{number:02}", buffer.getvalue())


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("CRLF_CACHE", str(tmp_path))
    monkeypatch.setitem(sets.SETS, "colours", PhotoSet((), "the colour", colours))
    return "colours"


def test_a_set_becomes_a_folder_of_class_folders(small, tmp_path):
    folder = sets.folder_of(small)
    assert folder == tmp_path / "photos" / "colours"
    assert sorted(one.name for one in folder.iterdir()) == ["blue", "green", "red"]
    shown = sets.images(small, 16)
    assert shown.pixels.shape == (42, 3, 16, 16) and shown.classes == ("blue", "green", "red")
    assert (shown.pixels.float().mean(dim=(2, 3)).argmax(dim=1) == 2 - torch.from_numpy(shown.labels)).all()
    before = os.stat(folder).st_mtime_ns
    assert sets.folder_of(small) == folder and os.stat(folder).st_mtime_ns == before
    sets.remove(small)
    assert not folder.exists() and len(sets.images(small, 16).names) == 42


@pytest.mark.long
def test_an_ablation_keeps_the_encoder_and_reads_it_in_several_ways(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ablation.SIZE, small, 16)
    rows, keep = tmp_path / "rows.jsonl", tmp_path / "kept"
    words = ["--sets", small, "--rows", str(rows), "--keep", str(keep), "--work", "1e-3", "--changes"]
    tiny = "batch_size=8 views=2"
    assert ablation.main([*words, f"{tiny}; {tiny} after=standardised; {tiny} read=1"]) == 0
    assert len(list(keep.iterdir())) == 1  # what changes nothing in training is read from the encoder that is there
    first, standardised, read = results.read(rows)
    assert first["steps"] == standardised["steps"] == read["steps"] > 1 and first["px"] == 16
    assert ablation.main([*words, tiny]) == 0 and len(results.read(rows)) == 3
    assert f"| {small} | 0.001 | {tiny} |" in capsys.readouterr().out


def test_the_work_of_an_ablation_is_counted_in_products(small):
    """A view of half the side takes a quarter of the products, so there are four times the steps, but for rounding."""
    shown = sets.images(small, 32)
    data = ImageSet(shown.pixels, None, (), shown.names)
    whole, half = (ablation.flop(Recipe(augmentation=ViewSettings(resolution=share)), data) for share in (1.0, 0.5))
    assert whole == 4 * half == 2 * (27 * 32 + (9 * 32 * 64 + 9 * 64 * 128 / 4 + 9 * 128 * 256 / 16) / 4) * 32**2


def test_seeds_of_an_ablation_are_averaged():
    rows = [
        {"set": "foods", "work": 3.0, "change": "base", "steps": 9, "linear": 50 + k, "knn": 40, "few": 30}
        for k in (0, 2)
    ]
    [line] = ablation.table(rows)
    assert (line["linear"], line["kNN"], line["mean"]) == ("51.0 ± 1.4", "40.0 ± 0.0", "40.3 ± 0.5")


def test_pixels_and_the_untrained_encoder(small):
    by_pixels, by_encoder = contestants.pixels(small, 0), contestants.untrained(small, 0, 32)
    assert by_pixels.emb.shape == (42, 768) and by_encoder.about == {"image_size": 32, "encoder": "cnn"}
    assert np.array_equal(by_pixels.labels, by_encoder.labels)
    again, other = contestants.untrained(small, 0, 32), contestants.untrained(small, 1, 32)
    assert np.array_equal(by_encoder.emb, again.emb) and not np.array_equal(by_encoder.emb, other.emb)


def test_a_trained_encoder_embeds_the_images_in_the_order_of_their_names(small, monkeypatch):
    """Two seconds of training: the rows are those of the run, put in order."""
    found = contestants.contestant("crlf 0.03 batch_size=14 images.image_size=32 views=2")(small, 0)
    assert found.emb.shape[0] == 42 and found.about["image_size"] == 32 and found.about["train_seconds"] < 10
    assert protocol.leave_one_out(found.emb, found.labels).mean() > 0.6


def test_a_run_of_other_images_is_refused(small):
    with pytest.raises(InputError, match="embedded 1 of the 42"):
        contestants.in_order([str(sets.folder_of(small) / "red" / "00.png")], small, sets.images(small, 16))


# What is read out of packages


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_a_photograph_is_there_once():
    random = np.random.default_rng(0)
    one, two = (random.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(2))
    smooth = np.asarray(Image.fromarray(one).resize((12, 12)).resize((96, 96), Image.Resampling.BICUBIC))
    copy = np.asarray(Image.fromarray(smooth).resize((70, 70), Image.Resampling.BICUBIC))
    given = [Photograph("a", str(i), png(pixels)) for i, pixels in enumerate((smooth, two, copy))]
    assert [photograph.name for photograph, _ in sets.distinct(given)] == ["0", "1"]


def test_what_is_transparent_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert sets.on_white(clear).getpixel((0, 0)) == (255, 255, 255)
    assert sets.on_white(half).getpixel((0, 0)) == (127, 127, 127)


def test_a_class_of_few_is_left_out():
    image = Image.new("RGB", (4, 4))
    pairs = [(Photograph("a" if n < sets.LEAST else "b", str(n), b""), image) for n in range(2 * sets.LEAST - 1)]
    assert {photograph.label for photograph, _ in sets.large(pairs)} == {"a"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("animals/mammals/cats/lion.png", "mammals"),
        ("animals/fish/shrimp.png", "fish and shellfish"),
        ("plants/lavender.png", "plants"),
        ("plants/flowers/rose.png", "flowers"),
        ("military/vehicles/bradley.png", "vehicles"),
        ("symbols/money/euro/coins/001.png", "coins"),
        ("symbols/chess/b_1_king.png", ""),
    ],
)
def test_the_folders_of_stamps_are_classes(name: str, label: str):
    assert sets.first_match(sets.STAMPS, name) == label


def test_a_qt_resource_is_read(tmp_path):
    """A root, a folder in it, and in that a file as it is and a compressed one."""
    words = ["images", "a.webp", "b.webp"]
    names, offsets = b"", []
    for word in words:
        offsets.append(len(names))
        names += struct.pack(">HI", len(word), 7) + word.encode("utf-16-be")
    plain, packed = b"plain", struct.pack(">I", 6) + zlib.compress(b"packed")
    contents = b"".join(struct.pack(">I", len(one)) + one for one in (plain, packed))
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", offsets[0], 2, 2, 2, 0)
    tree += struct.pack(">IHIIQ", offsets[1], 0, 0, 0, 0) + struct.pack(">IHIIQ", offsets[2], 1, 0, 4 + len(plain), 0)
    head = 24
    first = struct.pack(">4s5I", b"qres", 3, head, head + len(tree), head + len(tree) + len(contents), 0)
    path = tmp_path / "one.rcc"
    path.write_bytes(first + tree + contents + names)
    assert dict(qt_resources.files(path)) == {"images/a.webp": b"plain", "images/b.webp": b"packed"}


def entry(kind: int, shape: str, **numbers: int) -> bytes:
    held = [numbers.get(letters.strip("-"), 0) for letters in deep_sky.NUMBERS]
    text = shape.encode("utf-16-be")
    parts = [
        struct.pack(">I4dII", 1, 0, 0, 0, 0, kind, len(text)),
        text,
        struct.pack(">2di6d", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    return b"".join([*parts, struct.pack(">14I", *held), bytes(60)])


def test_the_catalogue_of_the_sky_is_read(tmp_path):
    version = "3.16".encode("utf-16-be")
    data = struct.pack(">I", len(version)) + version + struct.pack(">I", 0)
    data += entry(7, "IV", m=13, n=6205) + entry(0, "SA(s)b", m=31, n=224) + entry(9, "", n=1)
    path = tmp_path / "catalog.dat"
    path.write_bytes(gzip.compress(data))
    globular, spiral = "globular cluster", "spiral galaxy"
    assert deep_sky.objects(path) == {"m13": globular, "n6205": globular, "m31": spiral, "n224": spiral}


@pytest.mark.parametrize(
    ("shape", "label"),
    [
        ("SA(s)b", "spiral galaxy"),
        ("(R)SAB(s)a", "barred spiral galaxy"),
        ("SB(rs)bc", "barred spiral galaxy"),
        ("S0-a", "elliptical or lenticular galaxy"),
        ("SAB(rs)0", "elliptical or lenticular galaxy"),
        ("E3", "elliptical or lenticular galaxy"),
        ("dIrr", "irregular galaxy"),
        ("IB(s)m", "irregular galaxy"),
        ("5", ""),
    ],
)
def test_galaxies_by_their_type(shape: str, label: str):
    assert deep_sky.galaxy(deep_sky.GALAXY, shape) == label


# Packages


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that brings a small package, and counts how often it was asked."""
    source = tmp_path / "source.tgz"
    with tarfile.open(source, "w:gz") as tar:
        info = tarfile.TarInfo("package/one.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    folder, asked = tmp_path / "bin", tmp_path / "asked"
    folder.mkdir()
    script = folder / "npm"
    code = f"import shutil, sys; open({str(asked)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10)); "
    script.write_text(f"#!{sys.executable}\n{code}shutil.copy({str(source)!r}, 'small-1.0.tgz')\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("CRLF_CACHE", str(tmp_path / "cache"))
    return hashlib.sha256(source.read_bytes()).hexdigest(), asked


def test_a_package_is_fetched_once(npm):
    digest, asked = npm
    package = Package("npm", "@some/small", "1.0", digest, "MIT")
    for _ in range(2):
        place = packages.unpacked(package)
        assert (place / "package" / "one.txt").read_text() == "one" and place.name == "some-small-1.0"
    assert asked.read_text() == "pack @some/small@1.0 --ignore-scripts\n"


def test_another_file_is_refused_and_nothing_is_left(npm):
    package = Package("npm", "small", "1.0", 64 * "0", "MIT")
    with pytest.raises(InputError, match="another file"):
        packages.unpacked(package)
    assert [path.name for path in (packages.home() / "packages").iterdir() if path.name != ".lock"] == []


def test_a_missing_client_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CRLF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="needs apt-get, which is not on the PATH"):
        packages.unpacked(Package("apt", "small", "1.0", 64 * "0", "MIT"))


def test_every_package_has_a_checksum_a_version_and_a_licence():
    every = [package for one in sets.SETS.values() for package in one.packages]
    for package in [*every, imagenet.WEIGHTS, imagenet.REFERENCE]:
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256) and package.version and package.licence
        assert not re.search(r"https?:", " ".join(packages.command(package)))


# The network


def test_weights_that_do_not_fit_are_refused():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    given = {f"layer.{name}": torch.full_like(tensor, 2) for name, tensor in network.state_dict().items()}
    imagenet.fill(network, given)
    assert network[0].weight.tolist() == [[2.0, 2.0]] * 3 and network[1].running_var.tolist() == [2.0] * 3
    with pytest.raises(InputError, match="5 tensors, and the network 6"):
        imagenet.fill(network, {name: given[name] for name in list(given)[1:]})
    with pytest.raises(InputError, match=r"'layer\.0\.weight' \(3, 3\) does not fit '0\.weight' \(3, 2\)"):
        imagenet.fill(network, {**given, "layer.0.weight": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="does not fit"):  # the same shapes in another order
        imagenet.fill(network, {name: given[name] for name in [*list(given)[:2], *reversed(list(given)[2:])]})


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 128])
def test_the_network_is_the_published_one_bit_for_bit(size: int, monkeypatch):
    needed = [packages.home() / "packages" / package.folder for package in (imagenet.WEIGHTS, imagenet.REFERENCE)]
    if not all(place.is_dir() for place in needed):
        pytest.skip("the weights are not there: python -m bench photos fetches them")
    monkeypatch.syspath_prepend(str(needed[1]))
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(imagenet.weights_file(), weights_only=True))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = imagenet.classifier()
    with torch.no_grad():
        assert torch.equal(network(x), reference.eval()(x))
        pooled = network.forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(imagenet.imagenet_network()(x), pooled)
        whole = imagenet.imagenet_network(regions=2, mirror=True)(x).unflatten(1, (4, -1)).mean(dim=1)
        both = (imagenet.imagenet_network()(x) + imagenet.imagenet_network()(x.flip(3))) / 2
    torch.testing.assert_close(whole, both, rtol=1e-4, atol=1e-5)
