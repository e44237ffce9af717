"""The command line says what Python says; whatever is wrong ends in one line and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import terminal
import torch
from sampling import some
from terminal import EVERY, FEW, PIPES, PROGRAM, ROOT, Terminal, here, there

import crlf
from crlf import cli
from crlf.cli.flags import MOST_USED
from crlf.data import SOURCES
from crlf.encoders import ENCODERS
from crlf.methods import METHODS
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import CHECKPOINT, CHECKPOINT_BEFORE, FILES, Resume, Run

TINY = ["--data", "shapes", "--subset", "128", "--batch-size", "64", "--epochs", "1", "--device", "cpu"]


def command(*arguments: str) -> int:
    return cli.main(list(arguments))


def refused(*arguments: str, terminals: list[Terminal] = FEW) -> str:
    """The one line that a wrong command leaves, on terminals of every kind."""
    return terminal.refused(*arguments, terminals=terminals)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the command line made."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert command("pretrain", "--out", str(folder), *TINY) == 0
    return folder


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--epoch", "3"], "Did you mean --epochs?"),
        (["--batchsize", "3"], "Did you mean --batch-size?"),
        (["--epochs", "0"], "epochs must be in 1..100000, not 0"),
        (["--epochs", "-1"], "epochs must be in 1..100000, not -1"),
        (["--epochs"], "--epochs"),
        (["--batch-size", "-8"], "batch_size must be in 2..65536, not -8"),
        (["--batch-size", "1"], "batch_size must be in 2..65536, not 1"),
        (["--batch-size", "1000000000000"], "batch_size must be in 2..65536"),
        (["--subset", "-1"], "subset must be in"),
        (["--views", "1"], "views must be in 2..64, not 1"),
        (["--seed", "-1"], "seed must be in"),
        (
            ["--encoder", "resnt18"],
            "encoder 'resnt18' is not known: choose from cnn, resnet18, resnet34, resnet50, timm:NAME, "
            "vit_small, vit_tiny. Did you mean 'resnet18'?",
        ),
        (["--method", "simcrl"], "Did you mean 'simclr'?"),
        (["--recipe", "sed"], "Did you mean 'seed'?"),
        (["--recipe"], "recipe '' is not known"),
        (["--recipe", "missing.json"], "cannot be read"),
        (["--track", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["--device", "cdua"], "Did you mean 'cuda'?"),
        (["--data", "cifar"], "Did you mean 'cifar10'?"),
        (["--optimizer", "moun"], "Did you mean 'muon'?"),
        (["--temperature", "0"], "temperature must be in 0.001..100, not 0"),
        (["--lr", "nan"], "lr must be above 0"),
        (["--crop-min", "2"], "crop_min must be in 0..1, not 2"),
        (["--data-dir", "no/such/folder"], "'no/such/folder'"),
        (["stray"], "stray"),
        (["--resume=yes"], "--resume: "),
        (["--mean", "0.5", "half"], "--mean: must be a number, not 'half'"),
        (["--lr", "-1e-3"], "lr must be above 0 and finite, not -0.001"),
        (["--epochs", "three"], "--epochs: must be a whole number, not 'three'"),
        (["--nothing-like-it"], "flag '--nothing-like-it' is not known. `crlf pretrain --help` lists all."),
    ],
)
@pytest.mark.parametrize("terminals", some([FEW, EVERY]), ids=["few", "every"])
def test_bad_input_is_one_line(
    monkeypatch, tmp_path: Path, arguments: list[str], expected: str, terminals: list[Terminal]
):
    monkeypatch.chdir(tmp_path)
    known = ["--data", "shapes"] if "--data-dir" not in arguments else []
    assert expected in refused("pretrain", *known, *arguments, terminals=terminals)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--batch-size", "4096"], "batch_size must be at most the 2000 training images, not 4096"),
        (["--out", "/dev/null/run"], "cannot be written"),
    ],
)
def test_what_is_found_when_the_images_are_there(monkeypatch, tmp_path: Path, arguments: list[str], expected: str):
    monkeypatch.chdir(tmp_path)
    assert expected in terminal.refused("pretrain", "shapes", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_folder(tmp_path: Path):
    (tmp_path / "data").mkdir()
    line = refused("pretrain", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run"))
    assert str(tmp_path / "data") in line
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(tmp_path: Path):
    if not torch.cuda.is_available():
        line = terminal.refused("pretrain", "shapes", "--device", "cuda", "--out", str(tmp_path / "run"))
        assert "'cuda' is not on this machine" in line


def test_a_folder_with_a_run_asks_for_resume_or_overwrite(made: Path):
    before = (made / CHECKPOINT).read_bytes()
    line = refused("pretrain", "--out", str(made), *TINY)
    assert "--resume" in line and "--overwrite" in line
    assert (made / CHECKPOINT).read_bytes() == before


def test_resume_starts_from_the_runs_own_recipe(made: Path):
    assert command("pretrain", "--out", str(made), "--resume", "--device", "cpu") == 0
    line = refused("pretrain", "--out", str(made), "--resume", "--device", "cpu", "--temperature", "0.5")
    assert "temperature is 0.5, but the run to resume" in line and "has 0.2" in line


def test_unknown_command():
    assert "choose from classify, compare" in refused("\x1b[31mred\n")
    assert "Did you mean 'pretrain'" in refused("pretain")


MORE = {
    "finetune": ["shapes"],
    "classify": ["a.png"],
    "push": ["someone/encoder"],
}  # what a stage needs beside its run


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("run", "trial", "pretrain")])
def test_every_stage_refuses_what_is_no_run(tmp_path: Path, name: str):
    assert "does not exist" in refused(name, str(tmp_path / "nowhere"), *MORE.get(name, []))
    assert "holds no run" in refused(name, str(tmp_path), *MORE.get(name, []))
    assert "run" in refused(name).lower()


def test_a_stage_before_its_turn_names_the_command_that_is_missing(made: Path):
    assert "`crlf embed" in refused("probe", str(made))


def test_draw_draws_what_it_can_and_names_the_command_that_the_rest_waits_for(capsys, made: Path):
    assert command("draw", str(made)) == 0
    assert "pca_embedding is not drawn" in (said := capsys.readouterr().err) and "`crlf embed" in said
    assert (made / "loss_curve.png").is_file()


@pytest.mark.parametrize("spoiled", ["{", "[]", '{"epochs": "ten"}', '{"epoch": 3}', '{"optim": 3}', '{"method": "x"}'])
def test_a_spoiled_recipe_file(tmp_path: Path, spoiled: str):
    (tmp_path / "recipe.json").write_text(spoiled)
    refused("pretrain", "--recipe", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str):
    assert Recipe.from_dict(json.loads(json.dumps(RECIPES[name].to_dict()))) == RECIPES[name]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], RECIPES["default"]),
        (["--recipe", "seed"], RECIPES["seed"]),
        (["--recipe=seed", "--epochs", "3"], dataclasses.replace(RECIPES["seed"], epochs=3)),
        (["--epochs", "3", "--recipe", "seed"], dataclasses.replace(RECIPES["seed"], epochs=3)),
        (["--method", "simclr"], RECIPES["default"]),
    ],
)
def test_flags_start_from_the_named_recipe(arguments: list[str], expected: Recipe):
    found = {}

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found["recipe"] = recipe

    assert cli.command_line(stage, arguments, "stage") == 0
    assert found["recipe"] == expected


SECTIONS = {
    "epochs": ("3", ["epochs"], 3),
    "image-size": ("64", ["images", "image_size"], 64),
    "crop-min": ("0.3", ["augmentation", "crop_min"], 0.3),
    "mean": ("0.5", ["normalisation", "mean"], [0.5]),
    "lr": ("-1e-3", ["optim", "lr"], None),
    "warmup": ("0.25", ["optim", "warmup"], 0.25),
    "regions": ("3", ["embedding", "regions"], 3),
    "temperature": ("0.4", ["head", "temperature"], 0.4),
}


@pytest.mark.parametrize("flag", SECTIONS)
def test_a_flag_of_any_section_changes_its_own_setting_and_no_other(flag: str, capsys: pytest.CaptureFixture[str]):
    word, place, value = SECTIONS[flag]
    found = []

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found.append(recipe.to_dict())

    words = [f"--{flag}", word, *(["--std", "0.5"] if flag == "mean" else [])]
    if value is None:
        assert cli.command_line(stage, words, "stage") == 2
        assert "lr must be above 0 and finite, not -0.001" in capsys.readouterr().err
        return
    assert cli.command_line(stage, words, "stage") == 0
    expected = RECIPES["default"].to_dict()
    (expected if len(place) == 1 else expected[place[0]])[place[-1]] = value
    if flag == "mean":
        expected["normalisation"]["std"] = [0.5]
    assert found == [expected]


def test_a_recipe_file_repeats_a_run(made: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert command("pretrain", "--recipe", str(made / "recipe.json"), "--out", str(again), "--device", "cpu") == 0
    assert (again / "loss.npy").read_bytes() == (made / "loss.npy").read_bytes()


def test_the_seed_recipe_is_the_original_projects():
    recipe = RECIPES["seed"]
    a = recipe.augmentation
    assert (recipe.batch_size, recipe.epochs, recipe.views) == (128, 10, 2)
    assert (recipe.optim.optimizer, recipe.optim.lr, recipe.head.temperature) == ("adam", 3e-4, 0.5)
    assert (a.crop_min, a.brightness, a.contrast, a.saturation, a.hue, a.blur_kernel) == (0.2, 0.4, 0.4, 0.4, 0.1, 3)
    assert a.blur > 0


def test_underscores_are_hyphens_and_a_flag_can_be_taken_back():
    found = []

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found.append((recipe.batch_size, recipe.embedding.mirror, resume))

    words = ["--batch_size", "64", "--resume", "--no-resume", "--no-mirror", "--mirror"]
    assert cli.command_line(stage, words, "stage") == cli.command_line(stage, ["--no-mirror", "--resume"], "stage") == 0
    assert found == [(64, True, False), (128, False, True)]


@pytest.mark.parametrize(
    "words, resume, data",
    [
        (["photos", "--resume", "auto"], "auto", "photos"),
        (["--resume=auto", "photos"], "auto", "photos"),
        (["--resume", "photos"], True, "photos"),  # the word behind it is no value
        (["photos", "--resume", "auto", "--no-resume"], False, "photos"),
        (["auto", "--resume"], True, "auto"),
    ],
)
def test_a_flag_may_have_a_word_or_none(tmp_path: Path, monkeypatch, words: list[str], resume: Any, data: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / data).mkdir()
    found = []

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: Resume = False) -> None:
        found.append((resume, Path(recipe.data).name))

    assert cli.command_line(stage, words, "stage") == 0
    assert found == [(resume, data)]


def test_resume_auto_does_not_download_what_nobody_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "DATA is missing" in refused("run", "--resume", "auto")


def test_words_are_what_python_takes_by_position():
    found = []

    def stage(run: Run | str | Path, *others: Run | str | Path, k: int = 1) -> None:
        found.append((run, others, k))

    def pictures(run: str, images: Sequence[str] = (), *, k: int = 1) -> None:
        found.append((run, images, k))

    assert cli.command_line(stage, ["a", "-k", "2", "b", "--", "--c"], "stage") == 0
    assert cli.command_line(pictures, ["a", "b", "c"], "pictures") == cli.command_line(pictures, ["a"], "pictures") == 0
    assert found == [("a", ("b", "--c"), 2), ("a", ("b", "c"), 1), ("a", (), 1)]


# Help


def help_of(*arguments: str) -> str:
    code, text = here(PIPES, *arguments, "--help")
    assert code == 0
    return text


def test_help_lists_every_setting_with_its_default_by_section():
    text = help_of("pretrain")
    sections = [
        field.name for field in dataclasses.fields(Recipe) if dataclasses.is_dataclass(getattr(Recipe(), field.name))
    ]
    assert sections == ["images", "augmentation", "normalisation", "start", "optim", "embedding", "head"]
    assert all(f"{section} options" in text for section in sections)
    for section in (Recipe, *(type(getattr(Recipe(), name)) for name in sections)):
        for field in dataclasses.fields(section):
            if field.name not in sections:
                flag = field.name.replace("_", "-")
                assert f"--{flag} " in text or f"--no-{flag} " in text, flag
    flags = ("out", "data-dir", "device", "resume", "overwrite", "track", "recipe")
    assert all(text.count(f"  --{flag} ") == 1 for flag in flags)
    assert "(default: 10)" in text and "(default:\n                        simclr_output)" in text


def test_help_begins_with_the_most_used_flags():
    first = help_of("pretrain").partition("most used options:")[2].partition("\noptions:")[0]
    names = re.findall(r"^  --([\w-]+)", first, flags=re.MULTILINE)
    assert tuple(names) == MOST_USED and names[:4] == ["data", "out", "epochs", "minutes"] and len(names) == 13


def test_help_names_what_the_tables_hold():
    words = set(re.findall(r"[\w-]+", help_of("pretrain")))
    assert {*METHODS, *ENCODERS, *SOURCES, *RECIPES} <= words


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_needs_no_library_and_is_the_same_with_them(name: str):
    """What stands in for torch must change nothing that help says; and no reference is left where a name should be."""
    program = "import sys; from crlf.cli import main; main(); sys.exit('torch._C' in sys.modules)"
    done = there(PIPES, [sys.executable, "-W", "error", "-c", program, name, "--help"])
    assert done == (0, help_of(name))
    assert not re.search(r"\bcrlf\.[\w.]*[A-Z]", done.text)
    assert done.text.startswith(f"usage: crlf {name} ")


def test_python_runs_the_package_as_the_command():
    code, text = here(PIPES, "--help")
    assert there(PIPES, [sys.executable, "-m", "crlf", "--help"]) == (code, text)


def test_help_starts_from_the_recipe_and_the_method_that_are_asked_for():
    assert "(default: 0.0003)" in help_of("pretrain", "--recipe", "seed")
    assert "--queue INT" in help_of("pretrain", "--method", "mocov2") and "--queue" not in help_of("pretrain")


@pytest.mark.parametrize("name", [None, *cli.COMMANDS])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_as_wide_as_the_terminal(name: str | None, columns: int):
    arguments = [name, "--help"] if name else ["--help"]
    for kind in terminal.KINDS:
        code, text = here(Terminal(columns, kind), *arguments)
        widest = max(map(len, re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()))  # Python 3.14 colours it
        assert code == 0 and widest <= columns
        assert kind == "colours" or "\x1b" not in text
    assert widest > 0.75 * columns or name in (None, "report", "summary", "compare")  # short lines by nature


def test_help_behind_a_pager_is_as_wide_as_the_terminal():
    """`crlf embed --help | less`: stdout is a pipe, stderr the terminal."""
    with terminal.listening(Terminal(60)) as (end, _):
        shown = subprocess.run([*PROGRAM, "embed", "--help"], stdout=-1, stderr=end, env=PIPES.environment, cwd=ROOT)
    assert 45 < max(map(len, shown.stdout.decode().splitlines())) <= 60


def seconds(*command: str) -> float:
    """Of the processor, so that other programs do not count; of three tries the shortest."""
    taken = []
    for _ in range(3):
        before = os.times()
        assert there(PIPES, list(command)).code == 0
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))  # those of children
    return min(taken)


@pytest.mark.long
def test_help_is_quick():
    assert seconds(*PROGRAM, "--help") < 0.3  # 0.14 s on a quiet machine
    assert seconds(*PROGRAM, "pretrain", "--help") < 1.5  # 0.3 s; torch alone takes 2
    assert seconds(*PROGRAM, "run", "--help") < 1.5  # 0.4 s, though it imports every stage
    assert seconds(sys.executable, "simclr_train.py", "--help") < 1.5


def test_the_whole_and_its_version():
    text = help_of()
    assert all(f"\n  {name} " in text for name in cli.COMMANDS) and here(PIPES) == (0, text)
    assert here(PIPES, "--version") == (0, f"crlf {crlf.__version__}\n")


def test_python_and_the_command_line_share_names_and_arguments():
    import inspect

    for name in cli.COMMANDS:
        assert callable(getattr(crlf, name))
    flags = {"recipe", "out", "data_dir", "device", "resume", "overwrite", "track"}
    assert flags | {"data"} == set(inspect.signature(crlf.pretrain).parameters)


def test_images_are_given_from_python_alone(capsys, tmp_path: Path):
    """`data` of pretrain holds images: on the command line --data is the recipe's; embed's is a path as well."""
    assert cli.main(["pretrain", "--help"]) == 0
    assert len(re.findall(r"^\W*--data [A-Z]", capsys.readouterr().out, flags=re.MULTILINE)) == 1
    assert cli.main(["embed", "--help"]) == 0
    assert len(re.findall(r"^\W*--data PATH", capsys.readouterr().out, flags=re.MULTILINE)) == 1
    assert "holds no run" in refused("embed", str(tmp_path), "--data", "shapes")


def test_ctrl_c_before_training_leaves_130(capsys):
    def stage() -> None:
        raise KeyboardInterrupt

    assert cli.command_line(stage, [], "stage") == 130
    assert capsys.readouterr().err == "stage: interrupted\n"


@pytest.mark.long
def test_the_one_command_makes_every_file_of_the_design(tmp_path: Path):
    command = [sys.executable, str(ROOT / "simclr_train.py"), "--data", "shapes", "--subset", "300", "--epochs", "1"]
    arguments = ["--batch-size", "64", "--device", "cpu", "--out", str(tmp_path / "simclr_output")]
    done = subprocess.run(command + arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "simclr_output").iterdir()}
    assert made == set(FILES) - {CHECKPOINT_BEFORE}  # of an epoch before: there is one
    scores = json.loads((tmp_path / "simclr_output" / "scores.json").read_text())
    promised = {
        "linear_accuracy",
        "knn_accuracy",
        "chance",
        "epochs",
        "views_seen",
        "train_seconds",
        "images_per_second",
    }
    assert promised | {"pflop", "device", "encoder", "method", "seed", "protocol"} <= set(scores)
    for line in (f"linear probe  {100 * scores['linear_accuracy']:.1f} %", "chance", "trained in", "report.html"):
        assert line in done.stdout
    low, high = scores["linear_interval"]
    assert f" % ({100 * low:.1f} to {100 * high:.1f} %)" in done.stdout
    again = subprocess.run(command + arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 2 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
