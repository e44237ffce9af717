"""The command line: the commands are functions of the same names and arguments.

Exit codes: 2 after bad input (with one line on stderr), 130 after Ctrl-C, 143 after SIGTERM, 141 after a closed pipe.
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
    "run": ("crlf.pipelines.images_to_report", "do everything in one command, from images to a report: start here"),
    "trial": ("crlf.pipelines.trial", "find out whether training on your images is worth it"),
    "pretrain": ("crlf.training.pretrain", "train an encoder on images without labels"),
    "embed": ("crlf.embedding.embed", "compute the embeddings of a run's images, or of new images"),
    "search": ("crlf.inference.search", "find the nearest neighbours of an image"),
    "probe": ("crlf.evaluation.probe", "evaluate the embeddings: linear classifier, nearest neighbours and more"),
    "finetune": ("crlf.evaluation.finetune", "train a classifier from a run's encoder and labelled images"),
    "classify": ("crlf.inference.classify", "classify images with a trained classifier"),
    "draw": ("crlf.visualization.figures", "draw the figures of a run"),
    "report": ("crlf.visualization.report", "write the report of a run as one HTML file"),
    "compare": ("crlf.evaluation.compare", "compare runs and separate differences from noise"),
    "doctor": ("crlf.evaluation.doctor", "look for causes of a low score and suggest fixes"),
    "explore": ("crlf.visualization.explore", "explore embeddings and images in the browser with embedding-atlas"),
    "export": ("crlf.exporters.export", "export the encoder to timm, ONNX or torch.export, with a model card"),
    "push": ("crlf.exporters.push", "export the encoder and upload it to the Hugging Face Hub"),
    "summary": ("crlf.visualization.summary", "print a run's scores and the paths of its files"),
}  # torch is imported with a command's module, not before
NEXT = {
    "pretrain": "crlf embed {run}",
    "embed": "crlf probe {run}",
    "probe": "crlf draw {run}",
    "draw": "crlf report {run}",
    "report": "crlf search {run} IMAGE",
}  # the usual next command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `crlf` command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments, argv)
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return ended(f"crlf {name}", lambda: stage(name, arguments[1:]))
    return ended("crlf", lambda: greet(name))


def command_line(function: Callable[..., Any] | str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Call a function with the arguments of a command line. Positional parameters become words, the others flags.

    A parameter named `recipe` becomes one flag per setting. The settings start from `--recipe NAME` or
    `--recipe FILE.json`; with `--resume` they start from the run's own recipe.

    Args:
        function: a function, or the name of a command, whose module is imported when it is called.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments, argv)
    prog = prog or Path(sys.argv[0]).name
    return ended(prog, lambda: call(command(function) if isinstance(function, str) else function, arguments, prog))


def prepare(arguments: list[str], argv: Sequence[str] | None) -> None:
    """Skip the import of torch where only help is printed, and turn off the telemetry of the hub's client."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if argv is None and asks_for_help(arguments):
        stand_ins.install()


def asks_for_help(arguments: list[str]) -> bool:
    return any(word in flags.HELP for word in takewhile("--".__ne__, arguments))


def ended(prog: str, action: Callable[[], object]) -> int:
    """Call `action`, print one line if it fails, and return the exit code."""
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
    """The help of `crlf`, as wide as the terminal."""
    fill = partial(textwrap.fill, width=terminal.columns() - 2, subsequent_indent=" " * 13)
    rows = [fill(text, initial_indent=f"  {name:<10} ") for name, (_, text) in COMMANDS.items()]
    head = ["usage: crlf COMMAND [options]", "", "Learn from images without labels.", ""]
    begin = ["get started:", "  crlf run PATH", "", "commands:"]
    last = "PATH is a folder of images. crlf COMMAND --help lists the options of a command."
    return "\n".join([*head, *begin, *rows, "", fill(last, subsequent_indent="")])


def stage(name: str, arguments: list[str]) -> None:
    """Run a command, then print the usual next one."""
    run = call(command(name), arguments, f"crlf {name}", needs_data=name in ("run", "trial"))
    if name in NEXT and run is not None:
        terminal.say(f"next: {NEXT[name].format(run=shlex.quote(run))}")


def require_data(arguments: list[str], values: dict[str, Any]) -> None:
    """Raise InputError where no data are named: the default would be downloaded without being asked for."""
    said = {word.partition("=")[0] for word in arguments}
    if values.get("resume") == "auto":  # which may be the first start
        said -= {"--resume"}
    if flags.DATA_FLAG not in values and not said & {"--recipe", "--resume"}:
        what = "`crlf run PATH` learns from a folder of images, `crlf run cifar10` downloads a data set"
        raise InputError(f"DATA is missing: {what}")


def call(function: Callable[..., Any], arguments: list[str], prog: str, needs_data: bool = False) -> str | None:
    """Call a function with the parsed arguments, or print its help.

    Args:
        needs_data: whether the command line must name the data.

    Returns:
        The run folder if the function makes one or takes it as its only word, else None.
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
    """The word of `crlf pretrain PATH` as the value of the flag --data."""
    if words and flags.DATA_FLAG in values:
        raise InputError(f"data is given twice, as {words[0]!r} and with --data: give it once")
    return {flags.DATA_FLAG: words[0]} if words else {}


def of_other_images(recipe: Any, values: dict[str, Any]) -> Any:
    """Drop a recipe's image settings where it was made for your own files and --data names a data set."""
    from crlf.data import SOURCES, ImageSettings

    known = values.get(flags.DATA_FLAG) in SOURCES
    return dataclasses.replace(recipe, images=ImageSettings()) if known and recipe.data not in SOURCES else recipe


def start(function: Callable[..., Any], arguments: list[str]) -> tuple[Any, list[str]]:
    """The recipe that the flags start from, and the arguments left after `--recipe` is removed."""
    from crlf.methods import METHODS
    from crlf.recipe import RECIPES
    from crlf.runs.run import RECIPE, read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", nargs="?", const="")
    known, rest = flags.parse(first, arguments)
    for flag in ("--out", "--method"):
        first.add_argument(flag, nargs="?")
    first.add_argument("--resume", nargs="?", const=True)
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
