"""The command line. Flags and their defaults come from the functions and dataclasses themselves, through tyro.

Bad input ends in one line on stderr and exit code 2; Ctrl-C in 130, SIGTERM in 143.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from crlf.errors import InputError, unknown

COMMANDS = {
    "pretrain": ("crlf.training.pretrain", "learn an encoder from images without labels"),
    "embed": ("crlf.embedding.embed", "turn the images of a run, or new ones, into embeddings"),
    "search": ("crlf.inference.search", "find the images that are nearest to an image"),
    "probe": ("crlf.evaluation.probe", "measure the embeddings: linear classifier, nearest neighbours and more"),
    "finetune": ("crlf.evaluation.finetune", "make a classifier of a run's encoder and labelled images"),
    "classify": ("crlf.inference.classify", "tell the classes of images"),
    "draw": ("crlf.visualization.figures", "draw the figures of a run"),
    "report": ("crlf.visualization.report", "write the report of a run, one HTML file"),
    "compare": ("crlf.evaluation.compare", "hold runs against each other: what differs, and what is noise"),
    "doctor": ("crlf.evaluation.doctor", "look for reasons of a low score, and say what to try"),
    "explore": ("crlf.visualization.explore", "open embeddings and their images in the browser, by embedding-atlas"),
    "export": ("crlf.exporters.export", "write the encoder for timm, ONNX or torch.export, with a model card"),
    "push": ("crlf.exporters.push", "export the encoder and upload it to the Hugging Face hub"),
    "summary": ("crlf.visualization.summary", "print what a run reached and where its files lie"),
}  # torch is imported with a command's module, not before
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff)


def main(argv: Sequence[str] | None = None) -> int:
    """The `crlf` command: the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"crlf: error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    function = getattr(importlib.import_module(COMMANDS[name][0]), name)
    return command_line(function, arguments[1:], prog=f"crlf {name}")


def overview() -> str:
    rows = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    head = ["usage: crlf COMMAND [options]", "", "Learn from images without labels.", "", "commands:"]
    last = "crlf COMMAND --help lists the options of a command. python simclr_train.py does all of them in a row."
    return "\n".join([*head, *rows, "", last])


def command_line(function: Callable[..., Any], argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Call a function with the arguments of a command line.

    A parameter named `recipe` becomes its settings' flags; `--recipe NAME` or `--recipe FILE.json` is what they start
    from, and with `--resume` it is the run's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = prog or Path(sys.argv[0]).name
    try:
        if "recipe" in inspect.signature(function).parameters:
            function, arguments = with_recipe(function, arguments)
        bound = parse(function, arguments, prog)
        function(*bound.args, **bound.kwargs)
    except InputError as error:
        say(f"{prog}: error: {error}")
        return 2
    except KeyboardInterrupt as error:
        say(f"{prog}: {str(error) or 'interrupted'}")
        return getattr(error, "exit_code", 130)
    return 0


def say(line: str) -> None:
    """A last line on stderr. Of torchrun's processes, which as a rule end alike, the first one says it."""
    if os.environ.get("RANK", "0") == "0":  # crlf.runtime.distributed.rank, without torch
        print(line, file=sys.stderr)


def with_recipe(function: Callable[..., Any], arguments: list[str]) -> tuple[Callable[..., Any], list[str]]:
    """Give the function the recipe that is asked for as its default, and take `--recipe` off the arguments."""
    from crlf.methods import METHODS
    from crlf.recipe import RECIPES
    from crlf.runs.run import RECIPE, read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", nargs="?", const="")
    known, rest = first.parse_known_args(arguments)
    rest = with_data(rest)
    for flag in ("--out", "--method"):
        first.add_argument(flag, nargs="?")
    first.add_argument("--resume", action="store_true")
    asked, _ = first.parse_known_args(rest)
    out = asked.out or inspect.signature(function).parameters["out"].default
    if known.recipe is None and asked.resume and (Path(out) / RECIPE).is_file():
        recipe = read_recipe(Path(out) / RECIPE)
    elif known.recipe is None or known.recipe in RECIPES:
        recipe = RECIPES[known.recipe or "default"]
    elif known.recipe.endswith(".json"):
        recipe = read_recipe(Path(known.recipe))
    else:
        raise unknown("recipe", known.recipe, RECIPES)
    if asked.method in METHODS and asked.method != recipe.method:
        recipe = dataclasses.replace(recipe, method=asked.method, head=METHODS[asked.method].Settings())
    return functools.partial(function, recipe=recipe), rest


def with_data(arguments: list[str]) -> list[str]:
    """`--data` before a first word that is no flag: `crlf pretrain PATH` names what to learn from."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    if any(word.partition("=")[0] == "--data" for word in arguments):
        raise InputError(f"data is given twice, as {arguments[0]!r} and with --data: give it once")
    return ["--data", *arguments]


def parse(function: Callable[..., Any], arguments: list[str], prog: str) -> inspect.BoundArguments:
    """The arguments that a command line asks for; help is printed and ends the program."""
    found: list[inspect.BoundArguments] = []

    @functools.wraps(function if not isinstance(function, functools.partial) else function.func)
    def note(*positional: Any, **keywords: Any) -> None:
        found.append(inspect.signature(function).bind(*positional, **keywords))

    note.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    note.__annotations__ = words_for_rest(note.__wrapped__)
    del note.__wrapped__  # tyro would look there for the annotations
    said = io.StringIO()
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(path_rule)
    try:
        with contextlib.redirect_stderr(said), registry:
            tyro.cli(note, prog=prog, args=arguments, config=STYLE)
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(one_line(said.getvalue())) from None
    return found[0]


def words_for_rest(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, in which `*rest` takes the words that no flag stands before: RUN RUN RUN."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            hints[name] = tyro.conf.Positional[hints[name]]  # type: ignore[misc, valid-type]
    return hints


def one_line(box: str) -> str:
    """The gist of an error that tyro drew as a titled box: its first section, and the flag that it thinks was meant."""
    rows = [row.strip(" │╭╮╰╯─") for row in box.splitlines()]
    sections = re.split(r"\n(?:-*\n)+", "\n".join(rows[1:]).strip("-\n") + "\n\n")  # plain dashes without UTF-8
    text = re.sub(r"^Error parsing recipe[\w.]*: ", "", sections[0].replace("\n", " "))
    meant = re.search(r"Perhaps you meant:\s*(--[\w-]+)", "\n".join(sections))
    return text + (f". Did you mean {meant[1]}?" if meant else "")


def path_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """A union with Path in it, such as `Run | str | Path` or `str | Path | None`, is one word on the command line."""
    kinds = get_args(info.type)
    if Path not in kinds:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="RUN" if any(getattr(kind, "__name__", "") == "Run" for kind in kinds) else "PATH",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, kinds),
        str_from_instance=lambda value: [str(value)],
    )
