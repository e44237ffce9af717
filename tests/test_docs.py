"""Pages followed to the letter: the blocks of "Add a method" are written where it says, and run; so are the commands
and the programs of "Use the encoder"."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import test_methods
from PIL import Image

import crlf
from crlf import cli, methods
from crlf.methods import METHODS
from crlf.recipe import RECIPES, Recipe

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "add-a-method.md").read_text(encoding="utf-8")
FILE, LINE, TEST, COMMAND = re.findall(r"```\w*\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps 1 and 2: the file beside the other methods (in a folder of its own), and its line in the table."""
    (tmp_path / "alignment.py").write_text(FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    module = importlib.import_module("crlf.methods.alignment")
    for name, method in eval("{" + LINE + "}", vars(module)).items():
        monkeypatch.setitem(METHODS, name, method)
    yield
    del sys.modules["crlf.methods.alignment"]
    monkeypatch.delattr(methods, "alignment", raising=False)


def test_it_is_under_80_lines():
    lines = [line for block in (FILE, LINE, TEST) for line in block.splitlines() if line.strip()]
    assert len(lines) < 80


def test_its_test_passes(followed: None):
    names: dict = {}
    exec(TEST, names)
    tests = [thing for name, thing in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_contract_holds_over_the_table(followed: None):
    test_methods.test_gradient_reaches_every_trainable_weight_and_no_other("alignment", 3)
    for test in (
        test_methods.test_what_follows_is_frozen_and_no_optimizer_holds_it,
        test_methods.test_a_state_dict_holds_all_that_resuming_needs,
        test_methods.test_a_few_steps_lower_the_loss_on_a_fixed_batch,
        test_methods.test_bf16_autocast_is_finite_and_near_float32,
        test_methods.test_settings_are_flags_and_survive_json,
        test_methods.test_only_a_supervised_method_can_be_given_labels,
    ):
        test("alignment")


def test_its_command_starts_it(followed: None, tmp_path: Path):
    found = []

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found.append(recipe)

    program, *flags = COMMAND.split()[1:]
    assert program == "simclr_train.py" and cli.command_line(stage, flags, program) == 0
    assert found[0].method == "alignment" and found[0].head.uniformity == 0.5
    tiny = Recipe(method="alignment", data="shapes", subset=128, batch_size=64, views=2, epochs=1)
    run = crlf.pretrain(tiny, out=tmp_path / "run", device="cpu")
    assert {"alignment", "uniformity"} <= set(run.log()[-1])


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_page_names_every_method(name: str):
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page


# Use the encoder

USE = (DOCS / "use-the-encoder.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def in_use(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was not embedded yet, and photographs."""
    folder = tmp_path_factory.mktemp("use")
    crlf.pretrain(Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1), out=folder / "run", device="cpu")
    (folder / "new photos").mkdir()
    images = crlf.data.load("shapes")[0].images.permute(0, 2, 3, 1).numpy()
    for i, name in enumerate(("one.jpg", "new photos/two.png", "query.jpg", "other.jpg")):
        Image.fromarray(images[i]).save(folder / name)
    return folder


def test_the_commands_of_use_the_encoder(in_use: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(in_use)
    commands = re.findall(r"^    crlf (embed|search) (.*?)(?:  +#.*)?$", USE, flags=re.MULTILINE)
    assert len(commands) == 5
    for name, words in commands:
        assert cli.main([name, *shlex.split(words), "--device", "cpu"]) == 0, words
    made = ["embeddings.parquet", "new photos_embeddings.npy", "new photos_embeddings.parquet", "one.parquet"]
    assert all((in_use / name).is_file() for name in ("near.png", *made[1:])) and (in_use / "run" / made[0]).is_file()


def test_the_programs_of_use_the_encoder(in_use: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pandas")
    monkeypatch.chdir(in_use)
    crlf.embed("run", device="cpu")
    blocks, names = re.findall(r"```python\n(.*?)```", USE, flags=re.DOTALL), {}
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert names["rows"].shape == (100, 1792) and list(names["table"]["id"])[:1] == ["train/00000"]
