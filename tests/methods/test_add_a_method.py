"""The page "Add a method" followed to the letter: its blocks are written where it says, and run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import test_methods

import crlf
from crlf import cli, methods
from crlf.methods import METHODS
from crlf.recipe import RECIPES, Recipe

DOCS = Path(__file__).parents[2] / "docs"
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
