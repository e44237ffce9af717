"""An encoder starts from trained weights, in whatever file and under whatever names they come, or says why not."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from sampling import some
from tiny_images import encoded, pixels

import crlf
from crlf import cli, encoders
from crlf.augmentation import ViewSettings
from crlf.data import ImageSettings
from crlf.encoders import InitSettings
from crlf.errors import InputError
from crlf.evaluation import baselines
from crlf.exporters import model_card
from crlf.optim import rates, set_rates
from crlf.recipe import Recipe
from crlf.runs.payoff import payoff
from crlf.runs.run import ENCODER
from crlf.training import monitor
from crlf.training.knn_curve import KnnCurve
from crlf.training.prepare import of_weights, starting
from crlf.training.weights import matching, sources
from crlf.training.weights.layers import begin_late, freeze, layers_of, slow

TINY = {"data": "shapes", "subset": 48, "batch_size": 16, "views": 2, "epochs": 1, "precision": "float32"}


def net(name: str = "timm:test_resnet", channels: int = 3, size: int = 32, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return encoders.build(name, channels, size)


def shown(encoder: torch.nn.Module, channels: int = 3, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))


def settings(init: Path | str, **others: Any) -> InitSettings:
    return InitSettings(init=str(init), **others)


def started(init: Path | str, encoder: torch.nn.Module, **others: Any) -> matching.Match:
    return matching.load(encoder, sources.read(str(init)), settings(init, **others))


WRAPPERS = {
    "plain": lambda state: state,
    "of DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "in a checkpoint": lambda state: {"epoch": 3, "state_dict": {f"encoder.{k}": v for k, v in state.items()}},
    "a teacher's": lambda state: {
        "student": {"x": torch.ones(1)}, "teacher": {f"backbone.{k}": v for k, v in state.items()},
    },
    "with a head": lambda state: {**state, "fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)},
    "in half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}  # fmt: skip


FLAT = ("plain", "of DataParallel", "with a head", "in half precision")  # safetensors holds tensors alone


@pytest.mark.parametrize("how, end", [*((how, "pth") for how in WRAPPERS), *((how, "safetensors") for how in FLAT)])
def test_a_file_of_weights_is_read(how: str, end: str, tmp_path: Path):
    given, path = net(seed=1), tmp_path / f"weights.{end}"
    values = WRAPPERS[how](given.state_dict())
    if end == "pth":
        torch.save(values, path)
    else:
        safetensors.torch.save_file({k: v.contiguous() for k, v in values.items()}, path)
    other = net(seed=2)
    match = started(path, other)
    exact = 0.01 if how == "in half precision" else 0
    torch.testing.assert_close(shown(other), shown(given), rtol=exact, atol=exact)
    assert not match.missing and set(match.left) == ({"fc.weight", "fc.bias"} if how == "with a head" else set())


def test_other_names_go_by_order(tmp_path: Path):
    given, path = net(seed=1), tmp_path / "weights.pth"
    own = {k: v for k, v in given.state_dict().items() if "num_batches" not in k}
    torch.save({f"layer_{i}": value for i, value in enumerate([*own.values(), torch.ones(9)])}, path)
    with pytest.raises(InputError, match=r"fit 0 of the encoder.*they have layer_0.*--match order"):
        started(path, net())
    other = net(seed=2)
    assert started(path, other, match="order").left == [f"layer_{len(own)}"]
    torch.testing.assert_close(shown(other), shown(given), rtol=0, atol=0)
    by_name = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"layer_{i}": value.contiguous() for i, value in enumerate(own.values())}, by_name)
    with pytest.raises(InputError, match=r"must be a \.pth file for match 'order'"):
        started(by_name, net(), match="order")
    torch.save({f"layer_{i}": value for i, value in enumerate([*own.values()][1:])}, path)
    with pytest.raises(InputError, match="fit 0 of"):  # one is missing: what follows is not what it seems
        started(path, net(), match="order")


@pytest.mark.parametrize("name", some(["timm:test_resnet", "timm:test_vit", "resnet18"], 2))
def test_other_channels_and_sizes_are_adapted(name: str, tmp_path: Path):
    given, path = net(name, seed=1), tmp_path / "weights.pth"
    torch.save(given.state_dict(), path)
    grey = net(name, channels=1, seed=2)
    assert len(started(path, grey).adapted) == 1
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():  # three channels that are alike
        torch.testing.assert_close(grey.eval()(x), given.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)
    four = net(name, channels=4, seed=2)
    started(path, four)
    if name == "timm:test_vit":
        large = net(name, size=64, seed=2)
        found = started(path, large)
        assert not found.missing and large.pos_embed.shape != given.pos_embed.shape


@pytest.mark.parametrize("what", ["another network", "another width", "a pickle", "a number", "NaN", "empty", "cut"])
def test_what_is_no_weights_of_it_is_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, state = tmp_path / "weights.pth", net(seed=1).state_dict()
    first = next(iter(state))
    values = {
        "another network": net("timm:test_vit").state_dict(),
        "another width": {**state, first: torch.ones(5, 3, 3, 3)},
        "a number": 3,
        "NaN": {**state, first: torch.full_like(state[first], torch.nan)},
        "empty": {},
    }  # fmt: skip
    if what == "a pickle":
        path.write_bytes(pickle.dumps(Path("here")))
    else:
        torch.save(values.get(what, state), path)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    words = ["--init", str(path), "--encoder", "timm:test_resnet", "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert cli.main(["pretrain", "shapes", "--subset", "32", "--batch-size", "16", *words, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "error" in line or "init" in line]) == 1, said
    reason = {
        "another network": "fit 0 of the encoder's",
        "another width": f"{first!r} is (5, 3, 3, 3) in the weights and ",
        "a pickle": "cannot be loaded",
        "a number": "are not a state dict: the file holds an object of type 'int'",
        "NaN": f"hold NaN or infinite values in {first!r}",
        "empty": "are not a state dict",
        "cut": "cannot be loaded",
    }[what]
    assert reason in said[-1] and "weights.pth" in said[-1]
    assert not (tmp_path / "run").exists()


def test_a_part_is_taken_where_that_is_asked_for(tmp_path: Path):
    path, state = tmp_path / "weights.pth", net(seed=1).state_dict()
    names = list(state)
    torch.save({name: state[name] for name in names[: len(names) // 2]}, path)
    with pytest.raises(InputError, match="--partial-init loads what fits"):
        started(path, net())
    found = started(path, net(), partial_init=True)
    assert found.missing and set(found.taken) | set(found.missing) == set(matching.own_tensors(net()))


def test_a_file_does_not_say_its_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(net().state_dict(), tmp_path / "weights.pth")
    words = ["shapes", "--init", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "run")]
    assert cli.main(["pretrain", *words]) == 2
    assert "do not name their network: name it with `crlf pretrain PATH --encoder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_in_a_file_is_executed(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"a": torch.ones(1), "b": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="or holds more than tensors"):
        sources.read(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("source", ["nowhere", "timm:no_such_model", "local-dir:/nowhere", "timm:test_resnet"])
def test_what_cannot_be_had_says_what_to_do(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        sources.read(source)
    assert "\n" not in str(error.value) and source in str(error.value)
    if source == "timm:test_resnet":
        assert "the hub cannot be reached, and its weights are not in the cache" in str(error.value)


def test_a_folder_that_timm_wrote(tmp_path: Path):
    given = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(given, tmp_path / "model", model_config={"label_names": list("abcdefg")})
    found = sources.read(f"local-dir:{tmp_path / 'model'}")
    assert found.encoder == "timm:test_resnet" and found.normalisation.known
    recipe = of_weights(Recipe(), found)
    assert recipe.encoder == "timm:test_resnet" and recipe.normalisation == found.normalisation
    assert of_weights(Recipe(encoder="resnet18"), found).encoder == "resnet18"  # what is asked for stays
    other = net()
    matching.load(other, found, settings(found.source))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = given.eval().forward_head(given.forward_features(x), pre_logits=True)
        torch.testing.assert_close(other.eval()(x), expected, rtol=1e-5, atol=1e-5)


# A run


@pytest.fixture
def before(narrow: None, tmp_path: Path) -> crlf.Run:
    own = Recipe(**TINY, seed=1, normalisation=crlf.recipe.Normalisation(mean=(0.4,), std=(0.3,)))
    return crlf.pretrain(own, out=tmp_path / "before", device="cpu")


def test_a_run_goes_on_from_another_one(before: crlf.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = Recipe(**TINY, start=settings(before.path))
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=1e-9, vector_lr=1e-9))
    run = crlf.pretrain(recipe, out=tmp_path / "after", device="cpu")
    said = capsys.readouterr().err
    assert f"starts from {before.path}" in said and "trains with adamw, learning rate 1e-09" in said
    assert crlf.recipe.Recipe(**TINY).optim.optimizer == "muon" and run.recipe.optim.optimizer == "adamw"
    assert run.recipe.normalisation == before.recipe.normalisation
    one, other = (r.tensors(ENCODER) for r in (before, run))
    for name, value in one.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)
    origin = run.scores["started_from"]
    assert origin["source"] == str(before.path) and len(origin["sha256"]) == 64 and origin["encoder"] == "cnn"


def test_what_was_started_goes_on_without_the_weights(before: crlf.Run, tmp_path: Path):
    recipe = Recipe(**TINY | {"epochs": 2}, start=settings(before.path, freeze=1))
    whole = crlf.pretrain(recipe, out=tmp_path / "whole", device="cpu")
    crlf.pretrain(dataclasses.replace(recipe, epochs=1), out=tmp_path / "half", device="cpu")
    before.file(ENCODER).unlink()
    assert starting(recipe, crlf.Run(tmp_path / "half")) is None
    with pytest.raises(InputError, match="missing"):
        crlf.pretrain(recipe, out=tmp_path / "new", device="cpu")
    again = crlf.pretrain(recipe, out=tmp_path / "whole", device="cpu", resume=True)
    assert np.array_equal(again.array("loss.npy"), whole.array("loss.npy"))
    one, other = whole.tensors(ENCODER), again.tensors(ENCODER)
    assert again.recipe.start.mix == 0.5 and all(torch.equal(one[name], other[name]) for name in one)


def test_the_encoder_that_is_kept_lies_between_start_and_end(before: crlf.Run, tmp_path: Path):
    """As far as is asked for; training itself is the same."""
    runs = {
        mix: crlf.pretrain(Recipe(**TINY, start=settings(before.path, mix=mix)), out=tmp_path / str(mix), device="cpu")
        for mix in (0.0, 0.25, 1.0)
    }
    start, quarter, end = (run.tensors(ENCODER) for run in runs.values())
    assert np.array_equal(runs[0.0].array("loss.npy"), runs[1.0].array("loss.npy"))
    moved = 0
    for name, value in before.tensors(ENCODER).items():
        assert torch.equal(start[name], value if value.is_floating_point() else end[name])
        if value.is_floating_point():
            torch.testing.assert_close(quarter[name], 0.75 * value + 0.25 * end[name])
            moved += not torch.equal(end[name], value)
    assert moved >= 8


def test_batch_norms_keep_what_the_weights_came_with(before: crlf.Run, tmp_path: Path):
    """Their weights move; and where nothing is said they keep it with trained weights alone."""
    kept, follows = (
        crlf.pretrain(Recipe(**TINY, start=settings(before.path, mix=1.0, **more)), out=tmp_path / name, device="cpu")
        for name, more in {"kept": {}, "follows": {"norms": "follow"}}.items()
    )
    statistics = [name for name in before.tensors(ENCODER) if "running" in name]
    assert len(statistics) >= 6 and kept.recipe.start.norms == "keep" and Recipe().start.norms == "follow"
    for name in statistics:
        assert torch.equal(kept.tensors(ENCODER)[name], before.tensors(ENCODER)[name])
        assert not torch.equal(follows.tensors(ENCODER)[name], before.tensors(ENCODER)[name])
    weight = "stages.0.2.weight"  # of a batch norm
    assert not torch.equal(kept.tensors(ENCODER)[weight], before.tensors(ENCODER)[weight])


def test_the_head_learns_first(before: crlf.Run, tmp_path: Path):
    """Of three steps, after 17, 50 and 83 % of the training, none, one or all move the encoder."""
    ends = {}
    for share in (0.0, 0.6, 0.9):
        start = settings(before.path, mix=1.0, head_first=share)
        run = crlf.pretrain(Recipe(**TINY, start=start), out=tmp_path / str(share), device="cpu")
        ends[share] = run.tensors(ENCODER)
    held, weights = before.tensors(ENCODER), [name for name in ends[0.9] if name.endswith("0.weight")]
    assert all(torch.equal(ends[0.9][name], held[name]) for name in weights)
    assert not any(torch.equal(ends[0.6][name], held[name]) for name in weights)
    assert not any(torch.equal(ends[0.6][name], ends[0.0][name]) for name in weights)


def test_what_begins_late_has_a_schedule_of_its_own():
    s = Recipe().optim
    assert rates(s, 0.09, 0.1)["late"] == 0 and rates(s, 0.3)["late"] == rates(s, 0.3)["lr"]
    assert rates(s, 0.55, 0.1)["late"] == pytest.approx(rates(s, 0.5)["lr"])
    encoder, head = net("cnn"), torch.nn.Linear(2, 2)
    every = [*encoder.parameters(), *head.parameters()]
    mover = torch.optim.SGD([{"params": every, "lr": 1.0, "base_lr": 1.0, "base_decay": 0.1}])
    begin_late([mover], encoder)
    set_rates([mover], lr=0.5, decay=1.0, late=0.25)
    rate = {id(p): group["lr"] for group in mover.param_groups for p in group["params"]}
    assert {rate[id(p)] for p in encoder.parameters()} == {0.25} and {rate[id(p)] for p in head.parameters()} == {0.5}
    assert len(rate) == len(every)
    set_rates([mover], lr=0.5, decay=1.0)
    assert {group["lr"] for group in mover.param_groups} == {0.5}


# Which layers move


@pytest.mark.parametrize("name", some(["cnn", "timm:test_resnet", "resnet18", "vit_tiny", "timm:test_efficientnet"], 2))
def test_layers_are_all_weights_in_order(name: str):
    encoder = net(name)
    layers = layers_of(encoder)
    assert sorted(n for layer in layers for n in layer) == sorted(n for n, _ in encoder.named_parameters())
    assert len(layers) >= 4 and next(iter(encoder.named_parameters()))[0] in layers[0]


def test_frozen_layers_stay(narrow: None, tmp_path: Path):
    recipe = Recipe(**TINY, start=InitSettings(freeze=2))
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    torch.manual_seed(recipe.seed)
    first = encoders.build("cnn", 3, 32).state_dict()
    for name, value in run.tensors(ENCODER).items():
        still = name.startswith(("stages.0.", "stages.1."))
        assert torch.equal(value, first[name]) == still, name
    with pytest.raises(InputError, match=r"freeze must be in -3\.\.3, the encoder's layers, not 9"):
        freeze(encoders.build("cnn", 3, 32), 9)


def test_earlier_layers_move_more_slowly():
    encoder = net("cnn")
    rest = torch.nn.Linear(2, 2)
    mover = torch.optim.SGD([{"params": [*encoder.parameters(), *rest.parameters()], "lr": 1.0, "base_lr": 1.0}])
    slow([mover], encoder, 0.5)
    rate = {id(p): group["base_lr"] for group in mover.param_groups for p in group["params"]}
    depth = {name: int(name.split(".")[1]) for name, _ in encoder.named_parameters()}
    assert all(rate[id(p)] == 0.5 ** (3 - depth[name]) for name, p in encoder.named_parameters())
    assert all(rate[id(p)] == 1.0 for p in rest.parameters())


@pytest.mark.parametrize("wrong, message", [
    ({"match": "order"}, "match needs init, which is not given"),
    ({"init": "x", "match": "shape"}, "match 'shape' is not known"),
    ({"mix": 0.3}, "mix needs init, which is not given"),
    ({"init": "x", "mix": 1.5}, r"mix must be in 0\.\.1, not 1\.5"),
    ({"init": "x", "norms": "kept"}, "norms 'kept' is not known: choose from follow, keep. Did you mean 'keep'?"),
    ({"head_first": 0.1}, "head_first needs init, which is not given"),
    ({"init": "x", "head_first": 1.0}, r"head_first must be in 0\.\.0\.9, not 1"),
    ({"layer_decay": 0.0}, "layer_decay must be above 0"),
])  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        InitSettings(**wrong)


def test_own_photographs_start_from_a_run(before: crlf.Run, tmp_path: Path, narrow: None, capsys):
    """By the one command, with as much from the flags as from Python."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(12):
        (photos / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    out = tmp_path / "run"
    words = ["--init", str(before.path), "--epochs", "1", "--device", "cpu", "--image-size", "32", "--out", str(out)]
    assert cli.main(["pretrain", str(photos), *words]) == 0
    assert crlf.Run(out).recipe.encoder == "cnn" and "starts from" in capsys.readouterr().err
    asked = Recipe(data=str(photos), images=ImageSettings(image_size=32), augmentation=ViewSettings())
    assert asked.start == InitSettings() and isinstance(asked.encoder, str)


# Whether it paid


def test_training_is_held_against_the_weights_that_it_started_from(
    before: crlf.Run, tmp_path: Path, monkeypatch, capsys
):
    recipe = Recipe(**TINY, start=settings(before.path))
    run = crlf.embed(crlf.pretrain(recipe, out=tmp_path / "after", device="cpu"), device="cpu")
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(baselines, "load", lambda net, *given: (matching.load(net, *given), seen.append(net))[0])
    scores = crlf.probe(run, device="cpu")
    weights = before.tensors(ENCODER)
    assert seen and all(torch.equal(value, weights[name]) for name, value in matching.own_tensors(seen[0]).items())
    assert f"before its first step, {before.path}" in scores["protocol"]["untrained"]
    assert "the weights it started from" in capsys.readouterr().err
    lost = {"started_from": {}, "knn_over_untrained": {"difference": -0.042, "interval": [-0.08, -0.01]}}
    assert "fewer steps (--minutes, --epochs), a lower --lr" in payoff(lost).sentence
    assert "same encoder untrained" in payoff({k: v for k, v in lost.items() if k != "started_from"}).sentence
    card = model_card.settings(run.recipe, run.scores)
    assert (
        f"| started from | before (licence not known, SHA-256 {run.scores['started_from']['sha256'][:16]}…) |" in card
    )
    values = before.tensors(ENCODER)
    torch.save({name: value + 1 for name, value in values.items()}, before.file(ENCODER))
    with pytest.raises(InputError, match="are not those the run started from"):
        crlf.probe(run, probes="untrained", device="cpu")


def test_a_fall_below_the_start_is_said_while_it_trains(before: crlf.Run, tmp_path: Path, capsys, monkeypatch):
    """Once, and not for a difference that chance explains."""
    found = iter([0.8, 0.7, 0.1, 0.1])  # of the start, and of the looks
    seen: list[torch.Tensor] = []

    def accuracy(self: KnnCurve, encoder: torch.nn.Module) -> float:
        seen.append(next(encoder.parameters()).detach().clone())
        return next(found)

    monkeypatch.setattr(KnnCurve, "accuracy", accuracy)
    recipe = Recipe(**TINY | {"epochs": 3, "subset": 128}, start=settings(before.path))
    run = crlf.pretrain(recipe, out=tmp_path / "after", device="cpu")
    said = capsys.readouterr().err
    assert said.count("warning: kNN fell from 80.0 % at the start to 10.0 %. Try: fewer steps") == 1
    rows = [row for row in run.log() if "knn_accuracy" in row]
    first = next(iter(before.tensors(ENCODER).values()))
    assert torch.equal(seen[0], first) and not torch.equal(seen[1], first)
    assert [row["knn_accuracy"] for row in rows] == [0.7, 0.1, 0.1] and all(row["knn_at_start"] == 0.8 for row in rows)


def test_a_loss_of_dimensions_is_said_without_labels(before: crlf.Run, tmp_path: Path, capsys, monkeypatch):
    """Once, and held against the encoder as it was."""
    found, seen = iter([40.0, 30.0, 12.0, 11.0]), []  # of the start, and of the looks

    def examined(self: monitor.Watch, method: torch.nn.Module) -> dict[str, float]:
        seen.append(next(method.encoder.parameters()).detach().clone())
        return {"h_rankme": next(found)}

    monkeypatch.setattr(monitor.Watch, "examined", examined)
    recipe = Recipe(**TINY | {"epochs": 3, "subset": 128}, start=settings(before.path))
    crlf.pretrain(recipe, out=tmp_path / "after", device="cpu")
    said = capsys.readouterr().err
    assert said.count("warning: RankMe (dimensions in use) fell from 40 at the start to 12. Try:") == 1
    first = next(iter(before.tensors(ENCODER).values()))
    assert len(seen) == 4 and torch.equal(seen[0], first) and not torch.equal(seen[3], first)


def test_all_but_the_last_layers_stay():
    encoder = net("cnn")
    freeze(encoder, -1)
    layers, named = layers_of(encoder), dict(encoder.named_parameters())
    moves = [{named[name].requires_grad for name in layer} for layer in layers]
    assert moves == [*[{False}] * (len(layers) - 1), {True}]
