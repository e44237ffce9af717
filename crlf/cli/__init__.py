"""The command line: the commands are functions of the same names and arguments.

Bad input ends in one line on stderr and exit code 2; Ctrl-C in 130, SIGTERM in 143, a reader who went away in 141.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import crlf
from crlf.cli import flags, stand_ins
from crlf.errors import InputError, unknown
from crlf.runtime import terminal
from crlf.runtime.allocator import keep_freed_memory

COMMANDS = {
    "run": ("crlf.pipelines.images_to_report", "all of it in one command, from images to a report: begin here"),
    "trial": ("crlf.pipelines.trial", "find out whether it is worth training on these images at all"),
    "pretrain": ("crlf.training.pretrain", "learn an encoder from images without labels"),
    "embed": ("crlf.embedding.embed", "turn the images of a run, or new ones, into embeddings"),
    "search": ("crlf.inference.search", "find the images that are nearest to an image"),
    "probe": ("crlf.evaluation.probe", "measure the embeddings: linear classifier, nearest neighbours and more"),
    "finetune": ("crlf.evaluation.finetune", "make a classifier of a run's encoder and labelled images"),
    "classify": ("crlf.inference.classify", "classify images with a fine-tuned run"),
    "draw": ("crlf.visualization.figures", "draw the figures of a run"),
    "report": ("crlf.visualization.report", "write the report of a run, one HTML file"),
    "compare": ("crlf.evaluation.compare", "hold runs against each other: what differs, and what is noise"),
    "doctor": ("crlf.evaluation.doctor", "look for reasons of a low score, and say what to try"),
    "explore": ("crlf.visualization.explore", "open embeddings and their images in the browser, by embedding-atlas"),
    "export": ("crlf.exporters.export", "write the encoder for timm, ONNX or torch.export, with a model card"),
    "push": ("crlf.exporters.push", "export the encoder and upload it to the Hugging Face hub"),
    "summary": ("crlf.visualization.summary", "print what a run reached and where its files lie"),
}  # torch is imported with a command's module, not before
NEXT = {
    "pretrain": "crlf embed {run}",
    "embed": "crlf probe {run}",
    "probe": "crlf draw {run}",
    "draw": "crlf report {run}",
    "report": "crlf search {run} IMAGE",
}  # what a command is followed by, as a rule


def main(argv: Sequence[str] | None = None) -> int:
    """The `crlf` command: the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments, argv)
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return ended(f"crlf {name}", lambda: stage(name, arguments[1:]))
    return ended("crlf", lambda: greet(name))


def command_line(function: Callable[..., Any] | str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Call a function with the arguments of a command line: its words are those that Python takes by position.

    A parameter named `recipe` becomes its settings' flags; `--recipe NAME` or `--recipe FILE.json` is what they start
    from, and with `--resume` it is the run's own.

    Args:
        function: or the name of a command, whose module is imported when it is called.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments, argv)
    prog = prog or Path(sys.argv[0]).name
    return ended(prog, lambda: call(command(function) if isinstance(function, str) else function, arguments, prog))


def prepare(arguments: list[str], argv: Sequence[str] | None) -> None:
    """Spare a process that only prints help the import of torch; and let the hub's client tell nobody who uses it."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if argv is None and asks_for_help(arguments):
        stand_ins.install()


def asks_for_help(arguments: list[str]) -> bool:
    return any(word in flags.HELP for word in takewhile("--".__ne__, arguments))


def ended(prog: str, action: Callable[[], object]) -> int:
    """Do it, and say in one line why it failed: the exit code."""
    try:
        with terminal.outlets():
            try:
                action()
            except InputError as error:
                terminal.say(f"{prog}: error: {error}")
                return 2
            except KeyboardInterrupt as error:
                terminal.say(f"{prog}: {str(error) or 'interrupted'}")
                return getattr(error, "exit_code", 130)
    except terminal.Unwritable as end:
        return end.exit_code(prog)
    return 0


def command(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(COMMANDS[name][0]), name)


def greet(name: str) -> None:
    if name == "--version":
        print(f"crlf {crlf.__version__}")
    elif name in flags.HELP:
        print(overview())
    else:
        raise unknown("command", name, COMMANDS)


def overview() -> str:
    """The help of the whole, as wide as the terminal."""
    fill = partial(textwrap.fill, width=terminal.columns() - 2, subsequent_indent=" " * 13)
    rows = [fill(text, initial_indent=f"  {name:<10} ") for name, (_, text) in COMMANDS.items()]
    head = ["usage: crlf COMMAND [options]", "", "Learn from images without labels.", ""]
    begin = ["to begin:", "  crlf run PATH", "", "commands:"]
    last = "PATH is a folder of images. crlf COMMAND --help lists the options of a command."
    return "\n".join([*head, *begin, *rows, "", fill(last, subsequent_indent="")])


def stage(name: str, arguments: list[str]) -> None:
    """Do a command, and say which one comes next."""
    run = call(command(name), arguments, f"crlf {name}", needs_data=name in ("run", "trial"))
    if name in NEXT and run is not None:
        terminal.say(f"next: {NEXT[name].format(run=shlex.quote(run))}")


def require_data(arguments: list[str], values: dict[str, Any]) -> None:
    """Raise InputError where nothing says what to learn from: the default would be fetched, unasked."""
    said = {word.partition("=")[0] for word in arguments}
    if flags.DATA_FLAG not in values and not said & {"--recipe", "--resume"}:
        what = "`crlf run PATH` learns from a folder of images, `crlf run cifar10` from a data set that is fetched"
        raise InputError(f"DATA is missing: {what}")


def call(function: Callable[..., Any], arguments: list[str], prog: str, needs_data: bool = False) -> str | None:
    """Call a function with what the arguments say, or print its help.

    Args:
        needs_data: whether a recipe must be told what to learn from.

    Returns:
        The run folder, of a function that makes one or takes nothing else by place; else None.
    """
    recipe, takes_recipe, given = None, flags.RECIPE in inspect.signature(function).parameters, arguments
    if takes_recipe:
        recipe, arguments = start(function, arguments)
    if asks_for_help(arguments):
        print(flags.help_of(function, recipe, prog), end="")
        return None
    words, values = flags.read(function, recipe, arguments, prog)
    named = {name: value for name, value in values.items() if "." not in name}
    if takes_recipe:
        values |= with_data(words, values)
        if needs_data:
            require_data(given, values)
        named[flags.RECIPE] = flags.changed(of_other_images(recipe, values), values)
    keep_freed_memory()
    function(*([] if takes_recipe else words), **named)
    if takes_recipe:
        return str(named.get("out", inspect.signature(function).parameters["out"].default))
    return str(words[0]) if len(words) == 1 else None


def with_data(words: list[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The data of a recipe as its flag would give them: `crlf pretrain PATH` names what to learn from."""
    if words and flags.DATA_FLAG in values:
        raise InputError(f"data is given twice, as {words[0]!r} and with --data: give it once")
    return {flags.DATA_FLAG: words[0]} if words else {}


def of_other_images(recipe: Any, values: dict[str, Any]) -> Any:
    """A recipe for your own images without what it notes of them, where it is given a data set known by name."""
    from crlf.data import SOURCES, ImageSettings

    known = values.get(flags.DATA_FLAG) in SOURCES
    return dataclasses.replace(recipe, images=ImageSettings()) if known and recipe.data not in SOURCES else recipe


def start(function: Callable[..., Any], arguments: list[str]) -> tuple[Any, list[str]]:
    """The recipe that the flags start from, and the arguments without `--recipe`."""
    from crlf.methods import METHODS
    from crlf.recipe import RECIPES
    from crlf.runs.run import RECIPE, read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", nargs="?", const="")
    known, rest = flags.parse(first, arguments)
    for flag in ("--out", "--method"):
        first.add_argument(flag, nargs="?")
    first.add_argument("--resume", action="store_true")
    asked, _ = flags.parse(first, rest)
    name, out = known["recipe"], asked["out"] or inspect.signature(function).parameters["out"].default
    if name is None and asked["resume"] and (Path(out) / RECIPE).is_file():
        recipe = read_recipe(Path(out) / RECIPE)
    elif name is None or name in RECIPES:
        recipe = RECIPES[name or "default"]
    elif name.endswith(".json"):
        recipe = read_recipe(Path(name))
    else:
        raise unknown("recipe", name, RECIPES)
    if asked["method"] in METHODS and asked["method"] != recipe.method:
        recipe = dataclasses.replace(recipe, method=asked["method"], head=METHODS[asked["method"]].Settings())
    return recipe, rest
