"""One command from images to a report: in its time, from the stage that it had come to, and with five last lines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import terminal
from sampling import some
from terminal import PIPES, Terminal, here, seen
from tiny_images import encoded, pixels
from tiny_run import fake_run

import crlf
from crlf import cli
from crlf.errors import InputError
from crlf.pipelines import images_to_report as pipeline
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import CHECKPOINT, ENCODER, REPORT, Run
from crlf.runtime.interrupts import Interrupted
from crlf.text import each_once, say
from crlf.training import budget, loop
from crlf.visualization.closing import closing

TINY = ("--views", "2", "--image-size", "16", "--device", "cpu")
STAGES = ("pretrain", "embed", "probe", "draw", "report")
LAST = ["it learned", "did it pay?", "look at", "search", "next"]


def put(folder: Path, count: int, classes: tuple[str, ...] = ()) -> Path:
    """Images, in a folder for each class where there are such."""
    for i in range(count):
        place = folder / classes[i % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(encoded(pixels(i, 16, 16), "PNG"))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, all_narrow: None) -> Iterator[Path]:
    """A folder with images, in which one is; and a cache."""
    folder, before = tmp_path_factory.mktemp("a place"), Path.cwd()
    put(folder / "my photos", 30)
    put(folder / "things", 30, ("a", "b b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRLF_CACHE", str(folder / ".cache"))
        patch.chdir(folder)
        yield folder
    assert Path.cwd() == before


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    """What the command says on a terminal, of images with labels and without."""
    said = {}
    for data in ("my photos", "things"):
        code, said[data] = here(Terminal(80), "run", data, "--minutes", "0.05", *TINY, "--out", f"run of {data}")
        assert code == 0, said[data]
    return said


@pytest.fixture
def made(whole: dict[str, str], place: Path) -> Run:
    return Run("run of things")


# The whole


@pytest.mark.parametrize("data", ["my photos", "things"])
def test_from_images_to_a_report(data: str, whole: dict[str, str]):
    run, rows = Run(f"run of {data}"), seen(whole[data])
    assert {ENCODER, "train_emb.npy", "loss_curve.png", REPORT} <= set(run.held())
    recipe = run.recipe
    assert recipe.minutes == 0.05 and 0 < recipe.reserve <= 0.025 and recipe.budget == 0.05 - recipe.reserve
    assert run.scores["train_seconds"] < 60 * 0.05
    told = [line for line in rows if "in all (change it with --minutes)" in line]
    assert len(told) == 1 and told[0].startswith("3.0 s in all")
    assert sum("30 images of 16 × 16 pixels" in line for line in rows) == 1  # each stage reads them, one says so
    assert not any(word in whole[data] for word in ("None", "nan", "Traceback"))


@pytest.mark.parametrize("columns", some([None, 60, 80, 120], [None, 60]))
@pytest.mark.parametrize("data", ["my photos", "things"])
def test_five_lines_for_a_person(data: str, columns: int | None, whole: dict[str, str]):
    """Sentences are as wide as the terminal, and commands whole, on a line of their own."""
    code, said = here(Terminal(columns), "summary", f"run of {data}")
    table, _, end = said.partition("\n\n")
    rows = end.splitlines()
    names = [row[:14].strip() for row in rows if row[:14].strip()]
    assert code == 0 and names == LAST and "run of" in table and not any(word in said for word in ("None", "\x1b"))
    sentences = rows[: next(i for i, row in enumerate(rows) if row.startswith("look at"))]
    if columns:
        assert max(map(len, sentences)) <= columns
    else:
        assert len(rows) == 5
    search = next(row for row in rows if row.startswith("search"))[14:]
    command = shlex.split(search)
    assert command[:3] == ["crlf", "search", f"run of {data}"] and Path(command[3]).is_file()
    assert here(PIPES, *command[1:], "--device", "cpu").code == 0
    assert f"look at       'run of {data}/report.html'" in rows
    assert whole[data].endswith(here(Terminal(80), "summary", f"run of {data}").text)


def test_what_they_say_is_what_was_measured(whole: dict[str, str], made: Run):
    rows = {row[:14].strip(): row[14:] for row in here(PIPES, "summary", str(made.path)).text.splitlines()}
    scores = made.scores
    for name in ("linear_accuracy", "knn_accuracy", "chance"):
        assert f"{100 * scores[name]:.1f} %" in rows["it learned"]
    gain = scores["linear_over_untrained"]["difference"]
    assert f"{abs(100 * gain):.1f} points" in rows["did it pay?"] and "Try:" not in rows["did it pay?"]
    crops = Run("run of my photos")
    assert f"in {100 * crops.scores['crops_accuracy']:.1f} % of the cases" in whole["my photos"].replace(
        "\n" + 14 * " ", " "
    )


# What is done is not done again


@contextlib.contextmanager
def counted(patch: pytest.MonkeyPatch, stop_in: str = "") -> Iterator[list[str]]:
    """The stages that are called; the one to stop in ends with Ctrl-C when it has begun."""
    called: list[str] = []

    def watched(name: str):
        act = getattr(pipeline, name)

        def stage(*arguments, **settings):
            called.append(name)
            if name == stop_in:
                raise KeyboardInterrupt
            return act(*arguments, **settings)

        return stage

    with patch.context() as inner:
        for name in STAGES:
            inner.setattr(pipeline, name, watched(name))
        yield called


@pytest.mark.long
@pytest.mark.parametrize("data", some(["my photos", "things"], ["things"]))
def test_it_goes_on_from_the_stage_that_was_stopped(data: str, place: Path, tmp_path: Path, monkeypatch):
    """Ctrl-C in each stage after training, one after the other: what is whole stays, byte for byte."""
    out, words = str(tmp_path / "my run"), [data, "--epochs", "1", *TINY]
    expected, line = f"`crlf run --resume --out '{out}'` continues\n", "crlf run: stopped in {}: "
    before: dict[str, int] = {}
    for number, name in enumerate(STAGES[1:]):
        with counted(monkeypatch, stop_in=name) as called:
            code, said = here(PIPES, "run", *words, "--out", out, *["--resume"] * (number > 0))
        assert code == 130 and said.endswith(line.format(name) + expected), said
        assert called == list(STAGES[number : number + 2])
        kept = {
            path.name: path.stat().st_mtime_ns for path in Path(out).iterdir() if path.suffix in (".npy", ".pth", ".pt")
        }
        assert before.items() <= kept.items()
        before = kept
    with counted(monkeypatch) as called:
        code, said = here(PIPES, "run", "--resume", "--out", out)
    assert code == 0 and called == ["report"] and "already done: pretrain, embed, probe, draw\n" in said
    with counted(monkeypatch) as called:
        again = here(PIPES, "run", *words, "--resume", "--out", out)
    assert again.code == 0 and called == [] and "already done: pretrain, embed, probe, draw, report\n" in again.text
    assert [row[:14].strip() for row in again.text.splitlines()[-5:]] == LAST


@pytest.mark.long
def test_training_goes_on_from_its_checkpoint(place: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "run"

    @contextlib.contextmanager
    def stopped() -> Iterator[list[int]]:
        yield [15]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requests", stopped)
        code, said = here(PIPES, "run", "things", "--epochs", "3", *TINY, "--batch-size", "8", "--out", str(out))
    assert code == 143
    assert said.endswith(f"stopped after step 1 of 9: `crlf run --resume --out {out}` continues\n"), said
    assert not (out / ENCODER).exists() and (out / CHECKPOINT).exists()
    with counted(monkeypatch) as called:
        assert here(PIPES, "run", "--resume", "--out", str(out)).code == 0
    assert called == list(STAGES) and Run(out).scores["epochs"] == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_before_training_there_is_nothing_to_go_on_with(overwrite: bool, place: Path, tmp_path: Path, monkeypatch):
    """A run that would have been replaced is still the one in the folder."""
    run = fake_run(tmp_path / "old") if overwrite else Run(tmp_path / "new")
    with counted(monkeypatch, stop_in="pretrain"):
        words = ["run", "things", *TINY, "--out", str(run.path), *["--overwrite"] * overwrite]
        code, said = here(PIPES, *words)
    assert code == 130 and run.path.exists() == overwrite
    assert said.endswith("stopped in pretrain: nothing was trained yet; the same command starts again\n")


@pytest.mark.long
def test_a_stage_that_is_older_than_what_it_shows_is_done_anew(made: Run, monkeypatch, tmp_path: Path):
    with counted(monkeypatch) as called:
        assert here(PIPES, "run", "--resume", "--out", str(made.path)).code == 0
        assert called == []
        time.sleep(0.02)
        made.update_scores(linear_accuracy=made.scores["linear_accuracy"])
        assert here(PIPES, "run", "--resume", "--out", str(made.path)).code == 0
        assert called == ["report"]
        made.file("confusion_matrix.png").unlink()
        assert here(PIPES, "run", "--resume", "--out", str(made.path)).code == 0
        assert called == ["report", "draw", "report"]


def test_other_settings_are_no_run_to_go_on_with(made: Run):
    for words, expected in (
        (["--minutes", "3"], "minutes is 3.0, but the run to resume in 'run of things' has 0.05"),
        (["--views", "3"], "views is 3, but the run to resume in 'run of things' has 2"),
    ):
        line = terminal.refused("run", "things", "--resume", "--out", str(made.path), *words, alone=False)
        assert line.endswith(expected)
    assert here(PIPES, "run", "things", "--minutes", "0.05", "--resume", "--out", str(made.path)).code == 0


def test_a_recipe_from_python_goes_on_too(made: Run, monkeypatch, capsys):
    """Its mean is not measured and its batch is not that of the set: the run knows them."""
    recipe = Recipe(data="things", minutes=0.05, views=2, images=replace(Recipe().images, image_size=16))
    weights = made.file(ENCODER).read_bytes()
    with counted(monkeypatch) as called:
        crlf.run(recipe, out=made.path, resume=True, device="cpu")
    assert called[:1] == ["pretrain"] and "embed" not in called and made.file(ENCODER).read_bytes() == weights
    assert LAST[-1] in capsys.readouterr().out


# The time


@pytest.fixture
def asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that training is asked for."""
    found: list[Recipe] = []

    def pretrain(recipe: Recipe, **settings: object) -> None:
        found.append(recipe)
        raise InputError("enough")

    monkeypatch.setattr(pipeline, "pretrain", pretrain)
    monkeypatch.setattr(pipeline, "after_training", lambda *arguments: 90.0)
    return found


@pytest.mark.parametrize(
    "words, epochs, minutes",
    [
        (["things"], 10, 20),
        (["--seed", "1", "things"], 10, 20),
        (["things", "--minutes", "5"], 10, 5),
        (["things", "--epochs", "10"], 10, 0),
        (["things", "--recipe", "seed"], 10, 0),
        (["things", "--recipe", "simclr-r18"], 100, 0),
        (["--recipe", "run of things/recipe.json"], 10, 0.05),
        (["shapes"], 10, 0),
        (["shapes", "--minutes", "5"], 10, 5),
    ],
)
def test_minutes_are_for_images_of_ones_own(words: list[str], epochs: int, minutes: float, asked, whole):
    out = ["--out", "none"]
    assert (
        here(PIPES, "run", *words, *out).code == 2 and cli.command_line("run", [*words, *out], "simclr_train.py") == 2
    )
    for recipe in asked:
        assert (recipe.epochs, recipe.minutes) == (epochs, minutes)
        own = recipe.data not in ("shapes", "cifar10") and minutes > 0.05
        assert (1.5 <= recipe.reserve < 1.6) == own and (own or recipe.reserve < 0.05)
    assert len(asked) == 2


def test_the_script_alone_is_as_ever(asked, place: Path):
    assert cli.command_line("run", [], "simclr_train.py") == 2
    assert asked == [RECIPES["default"]] and asked[0].data == "cifar10" and asked[0].budget == 0


def test_the_reserve_is_what_passed_and_what_will(asked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 130.0)

    def reserve(minutes: float) -> float:
        recipe = Recipe(data="things", minutes=minutes)
        return pipeline.in_time(recipe, Run("none"), False, None, "cpu", started=100.0).reserve

    assert reserve(10) == 2.0  # 30 s and 90 s
    assert reserve(2) == 1.0  # training keeps half


def test_training_has_what_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 103.0)
    course = budget.course_of(Recipe(data="shapes", minutes=10, reserve=4), 10, 0, 0.0, 0.0, started=100.0)
    assert isinstance(course, budget.ByClock) and course.budget == 360 - 3
    with pytest.raises(InputError, match=r"reserve must be below the 10 minutes of the run, not 10"):
        Recipe(minutes=10, reserve=10)


def test_what_comes_after_training_takes_longer_with_more_images_and_labels(place: Path):
    recipe = Recipe(data="things")
    few = pipeline.after_training(replace(recipe, subset=10), None, "cpu")
    all_of_them = pipeline.after_training(recipe, None, "cpu")
    without = pipeline.after_training(replace(recipe, images=replace(recipe.images, labels=False)), None, "cpu")
    assert pipeline.FIGURES < without < all_of_them and few < all_of_them
    assert pipeline.fitting(5000, 1792, 10, False) < pipeline.fitting(4999, 1792, 10, True)


# Bad input


@pytest.fixture
def bad(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "one", 1)
    put(tmp_path / "photos", 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("no image")
    fake_run(tmp_path / "old")
    return tmp_path


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            [],
            "DATA is missing: `crlf run PATH` learns from a folder of images, `crlf run cifar10` downloads a data set",
        ),
        (["--minutes", "5"], "DATA is missing"),
        (["nowhere"], "data set 'nowhere' is not known"),
        (["no/where"], "/no/where' does not exist"),
        (["empty"], "empty' is empty"),
        (["one", "--image-size", "16"], "one' must have 2 training images or more, not 1"),
        (["notes.md"], "notes.md' must be a folder, a list (.txt), a table"),
        (["photos", "--data", "one"], "data is given twice, as 'photos' and with --data: give it once"),
        (["photos", "one"], "'one' is one argument too many: crlf run [DATA] [options]"),
        (["photos", "--out", "old"], "output folder 'old' holds another run: --resume continues it, --overwrite"),
        (["photos", "--resume", "--out", "new"], "output folder 'new' holds no run to resume"),
        (["photos", "--out", "photos/run"], "photos/run' is inside the image folder"),
        (["photos", "--minutes", "-1"], "minutes must be in 0..1000000, not -1.0"),
        (["photos", "--encoder", "resnt18"], "Did you mean 'resnet18'?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_lost(words: list[str], expected: str, bad: Path):
    before = {str(path): path.stat().st_mtime_ns for path in bad.rglob("*")}
    alone = "one" not in words[:1]  # of one image it says what it found
    assert expected in terminal.refused("run", *words, alone=alone)
    assert {str(path): path.stat().st_mtime_ns for path in bad.rglob("*")} == before


def test_the_folder_is_looked_at_before_the_images(bad: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "load", lambda *arguments: pytest.fail("it decoded them"))
    assert "holds another run" in terminal.refused("run", "photos", "--out", "old")


def test_a_place_among_the_images_is_named_another(bad: Path, monkeypatch: pytest.MonkeyPatch):
    """`cd photos; crlf run .` would find its own figures among the photographs."""
    monkeypatch.chdir(bad / "photos")
    assert terminal.refused("run", ".").endswith("try --out ../simclr_output")
    pipeline.require_free(Recipe(data="."), ".hidden/run", False, False)  # where images are not looked for


# What to do next


def gain(points: float) -> dict[str, object]:
    return {"difference": points / 100, "interval": [points / 100 - 0.01, points / 100 + 0.01]}


def finished(
    path: Path, data: Path, points: float | None, labels: bool = True, images: int = 30, **settings: object
) -> Run:
    """A run of files, with a gain over the untrained encoder."""
    run = fake_run(path)
    names = [str(image.relative_to(data)) for image in sorted(data.rglob("*.png"))]
    run.file("train_ids.json").write_text(json.dumps((names * images)[:images]))
    run.file("test_ids.json").write_text(json.dumps(names))
    recipe = {**run.settings, "data": str(data), "images": {"image_size": 0}, "minutes": 10.0, **settings}
    run.file("recipe.json").write_text(json.dumps(recipe))
    if not labels:
        run.file("test_lbl.npy").unlink()
    if points is not None:
        name = "linear" if labels else "crops"
        run.update_scores(**{f"{name}_over_untrained": gain(points), f"{name}_accuracy": 0.5})
    run.update_scores(image_shape=[3, 128, 128], embed_seconds=1.0, probe_seconds=1.0)
    return run


def rows_of(run: Run) -> dict[str, str]:
    return {row[:14].strip(): row[14:] for row in closing(run).splitlines()}


def test_what_comes_next_depends(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = put(tmp_path / "my photos", 3)
    made = {
        "low": finished(tmp_path / "low", data, -3),
        "noise": finished(tmp_path / "noise", data, 0.1, minutes=0.0, epochs=40),
        "few": finished(tmp_path / "few", data, 5),
        "many": finished(tmp_path / "many", data, 5, images=5000),
        "bare": finished(tmp_path / "bare", data, 5, labels=False),
        "blind": finished(tmp_path / "blind", data, None),
    }
    found = {name: rows_of(run)["next"] for name, run in made.items()}
    again = "train longer, on smaller images: crlf run --recipe {0}/recipe.json {1} --image-size 64 --out {0}-longer"
    assert found == {
        "low": again.format("low", "--minutes 30"),
        "noise": again.format("noise", "--epochs 120"),
        "few": "make a classifier, of few labels: crlf finetune few 'my photos'",
        "many": "use it elsewhere: crlf export many",
        "bare": "use it elsewhere: crlf export bare",
        "blind": "ask what can be better: crlf doctor blind",
    }
    assert rows_of(made["blind"])["did it pay?"] == "not measured: `crlf probe` does."
    assert "a crop of an image finds it among the others in 50.0 % of the cases" in rows_of(made["bare"])["it learned"]


def test_images_that_are_small_or_no_files_are_not_made_smaller(place: Path, tmp_path: Path):
    data = put(tmp_path / "photos", 3)
    run = finished(tmp_path / "run", data, -3)
    run.update_scores(image_shape=[3, 64, 64])
    assert "--image-size" not in rows_of(run)["next"] and rows_of(run)["next"].startswith("train longer: ")
    named = finished(tmp_path / "named", data, -3)
    named.file("recipe.json").write_text(json.dumps({**named.settings, "data": "cifar10"}))
    assert "--image-size" not in rows_of(named)["next"] and rows_of(named)["search"].endswith("/named IMAGE")


def test_words_are_as_a_shell_takes_them(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From within the folder of the images, one of which looks like a flag; one cannot be written on a line."""
    data = tmp_path / "it's here"
    for name in ("a\nb.png", "-k.png"):
        put(data, 1)
        (data / "0.png").rename(data / name)
    monkeypatch.chdir(data)
    run = finished(tmp_path / "a run", data, 5)
    command = shlex.split(rows_of(run)["search"])
    assert command == ["crlf", "search", str(tmp_path / "a run"), "./-k.png"] and os.path.isfile(command[3])


def test_a_line_is_said_once(capsys: pytest.CaptureFixture[str]):
    with each_once():
        for word in ("one", "two", "one"):
            say(word)
    say("one"), say("one")
    assert capsys.readouterr().err.split() == ["one", "two", "one", "one"]


def test_the_stop_says_its_number():
    with pytest.raises(Interrupted) as stop, pipeline.interrupted_in("probe", Run("run"), resume=True):
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130 and re.fullmatch(r"stopped in probe: `crlf run .*", str(stop.value))
