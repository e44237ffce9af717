"""The measurement of trained weights on photographs: who takes part, the tables, and how far weights are mixed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench.photos import results
from bench.transfer import adapting, main
from crlf.errors import InputError


def row(name: str, who: str, right: float, seed: int = 0) -> dict:
    bits = "".join(str(int(i < 100 * right)) for i in range(100))
    return {"set": name, "contestant": who, "seed": seed, "image_size": 64, "classes": 4, "k": 10, "linear": bits,
            "knn": bits, "few": [float(bit) for bit in bits]}  # fmt: skip


def found() -> results.Results:
    worth = {"model 128": 0.5, "crlf 3": 0.4, "init 3": 0.6, "taught 3": 0.45}
    return results.Results([row(name, who, right) for name in ("foods", "sky") for who, right in worth.items()])


def test_each_is_held_against_what_it_should_beat():
    lines = [line for line in main.markdown(found()).splitlines() if " less " in line]
    means = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}
    assert means == {
        f"{name}: {pair}": mean
        for name in ("foods", "sky", "all sets")
        for pair, mean in {
            "taught 3 less crlf 3": "+5.0", "init 3 less model 128": "+10.0", "init 3 less crlf 3": "+20.0",
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
