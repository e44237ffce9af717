"""The measurement of trained weights on photographs: who takes part, the tables, and how far weights are mixed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_images import encoded, pixels

from bench.photos import results
from bench.transfer import adapting, label_free, main
from crlf import encoders
from crlf.errors import InputError
from crlf.pipelines.contestants import Contestant


def row(name: str, who: str, right: float, seed: int = 0) -> dict:
    bits = "".join(str(int(i < 100 * right)) for i in range(100))
    return {"set": name, "contestant": who, "seed": seed, "image_size": 64, "classes": 4, "k": 10, "linear": bits,
            "knn": bits, "few": [float(bit) for bit in bits]}  # fmt: skip


def found() -> results.Results:
    worth = {"model 128": 0.5, "crlf 3": 0.4, "init 3": 0.6, "again 3": 0.41, "taught 3": 0.45}
    return results.Results([row(name, who, right) for name in ("foods", "sky") for who, right in worth.items()])


def test_each_is_held_against_what_it_should_beat():
    lines = [line for line in main.markdown(found()).splitlines() if " less " in line]
    means = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}
    assert means == {
        f"{name}: {pair}": mean
        for name in ("foods", "sky", "all sets")
        for pair, mean in {
            "taught 3 less crlf 3": "+5.0", "init 3 less model 128": "+10.0", "init 3 less crlf 3": "+20.0",
            "again 3 less crlf 3": "+1.0",
        }.items()
    }  # fmt: skip


def test_ways_to_agree_have_a_table_where_there_are_several():
    rows = [row("foods", "crlf 3", 0.4), row("foods", "taught 3", 0.5), row("sky", "taught 3", 0.5)]
    assert main.losses(results.Results(rows)) == "not measured"
    rows.append(row("foods", "taught 3 head.agree=both", 0.6))
    text = main.losses(results.Results([*rows, row("foods", "init 3", 0.9)]))
    assert "head.agree=both" in text and "crlf 3" in text and "init 3" not in text and "sky" not in text


@pytest.mark.parametrize("text", ["model", "model x", "init", "init x", "taught 3 agree", "nobody 3"])
def test_a_wrong_name_is_refused(text: str):
    with pytest.raises(InputError, match="contestant"):
        main.contestant(text)


def test_settings_reach_the_recipe(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(main, "weights_file", lambda: "w.pth")
    monkeypatch.setattr(main, "trained", lambda *arguments: seen.append(arguments))
    main.contestant("init 3 optim.lr=0.1 start.freeze=2")("foods", 1)
    name, seed, minutes, words, asked = seen[0]
    assert (name, seed, minutes, words) == ("foods", 1, 3.0, ["optim.lr=0.1", "start.freeze=2"])
    assert asked == {
        "encoder": main.NETWORK, "images": {"image_size": 128}, "optim": {"lr": 0.1},
        "start": {"init": "w.pth", "match": "order", "freeze": 2},
    }  # fmt: skip


def test_rows_are_made_once_and_the_table_is_printed(tmp_path, monkeypatch, capsys):
    calls = []

    def given(name: str, seed: int, size: int) -> main.Embedded:
        calls.append((name, seed))
        labels = np.repeat(np.arange(4), 12)
        emb = np.eye(4, dtype=np.float32)[labels] + 0.1 * np.random.default_rng(seed).normal(size=(48, 4))
        return main.Embedded(emb.astype(np.float32), labels, {"image_size": size})

    monkeypatch.setattr(main, "given", given)
    words = ["--sets", "foods", "--contestants", "model 128", "--seeds", "0,1", "--rows", str(tmp_path / "rows.jsonl")]
    assert main.main(words) == 0 and main.main(words) == 0
    assert calls == [("foods", 0), ("foods", 1)] and "| model 128 | 128 | 2 | 100.0" in capsys.readouterr().out
    for wrong, said in ((["--sets", "x"], "set of photographs"), (["--seeds", "a"], "seeds are whole numbers")):
        with pytest.raises(InputError, match=said):
            main.main(wrong)


def test_weights_are_mixed():
    start, end = {"a": torch.zeros(2), "n": torch.tensor(1)}, {"a": torch.ones(2), "n": torch.tensor(5)}
    got = adapting.mixed(start, end, 0.25)
    assert got["a"].tolist() == [0.25, 0.25] and got["n"] == 5


def test_a_change_is_settings_over_the_base(monkeypatch: pytest.MonkeyPatch):
    one = adapting.merged(adapting.SETTINGS, {"optim": {"lr": 0.5}, "views": 4})
    assert one["optim"] == {"optimizer": "adamw", "lr": 0.5} and one["views"] == 4
    assert adapting.SETTINGS["optim"]["lr"] == 1e-4 and one["start"]["norms"] == "follow"


def test_the_table_is_by_set_change_and_mix(tmp_path, capsys):
    rows = [
        {"set": "foods", "change": "base", "mix": mix, "seed": seed, "linear": 60 + seed, "knn": 50.0, "few": 40}
        for mix in (0.5, 1.0)
        for seed in (0, 1)
    ]
    lines = adapting.table(rows)
    assert [(line["mix"], line["seeds"], line["linear"]) for line in lines] == [
        (0.5, 2, "60.5 ± 0.7"),
        (1.0, 2, "60.5 ± 0.7"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one | {"views": 10}) + "\n" for one in rows))
    assert (
        adapting.main(["--rows", str(path)]) == 0
        and "| foods | base | 0.5 | 2 | 60.5 ± 0.7 |" in capsys.readouterr().out
    )


# Which measure ranks encoders


def test_correlations_by_hand():
    """The one measure ranks as the probe does in both sets, the other as its opposite in one of them."""
    rows = [
        {"set": name, "encoder": str(i), "linear": 10.0 * i, "knn": i, "few": i, "crops": i**2, "rankme": sign * i}
        for name, sign in (("sky", 1), ("foods", -1))
        for i in range(5)
    ]
    lines = {line["measure"]: line for line in label_free.correlations(rows)}
    assert lines["crops"]["linear"] == 1 and lines["rankme"]["linear"] == 0
    assert lines["rankme"]["by set"] == "sky 1.00, foods -1.00" and list(lines) == ["crops", "rankme"]


def test_there_are_twelve_encoders_or_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(main, "weights_file", lambda: "w.pth")
    every = list(label_free.encoders())
    assert len(every) >= 12 and len({name for name, *_ in every}) == len(every)
    assert {one.kind for _, _, one, _ in every} == {"pixels", "untrained", "model", "scratch", "start"}


def test_an_encoder_is_judged_and_measured(tmp_path, monkeypatch, few_weights):
    """A tiny one on tiny photographs: every number is one."""
    monkeypatch.setitem(encoders.ENCODERS, "cnn", few_weights)
    for seed in range(24):
        place = tmp_path / "photos" / ("cat", "dog")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    monkeypatch.setattr(label_free, "folder_of", lambda name: tmp_path / "photos")
    monkeypatch.setattr(label_free, "LIDAR", (10, 3))
    for who, settings, one, minutes in (
        ("pixels", {}, Contestant("pixels", "pixels"), 0.0),
        ("untrained 16", {"images": {"image_size": 16}}, Contestant("untrained", "untrained"), 0.0),
        ("simclr", {}, Contestant("simclr", "scratch"), 0.01),
    ):
        row = label_free.measure("tiny", who, settings, one, minutes)
        assert row["encoder"] == who and all(np.isfinite(row[key]) for key in row if key not in ("set", "encoder"))
        assert {"crops", "rankme", "agreement", "lidar", "uniformity", "alignment", "effective_rank"} <= row.keys()
