"""The flags of a command, made from the signature of its function, its settings' dataclasses and their docstrings.

Positional parameters become words on the command line, keyword-only parameters become flags. argparse parses the flags
and formats the help.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from crlf.cli.docstrings import argument_texts, attribute_texts, paragraph
from crlf.errors import InputError, unknown
from crlf.runtime.terminal import columns
from crlf.text import PYTHON_ONLY

RECIPE = "recipe"  # the parameter whose settings are flags
DATA_FLAG = f"{RECIPE}.data"
START = "the settings to start from: one of crlf.recipe.RECIPES, or a recipe.json; other flags override them"
FIRST = "most used options"
MOST_USED = (
    *("data", "out", "epochs", "minutes", "domain", "encoder", "method", "batch-size", "image-size"),
    *("device", "seed", "resume", "overwrite"),
)
RUN = "the run folder"  # the text of a word that its docstring does not explain
HELP = ("-h", "--help")
Kind = Literal["needed", "optional", "many", "any", "spread"]


@dataclass(frozen=True)
class Flag:
    """A flag of the command line."""

    place: str
    """The parameter or setting that it sets, such as out or recipe.optim.lr."""
    hint: Any
    default: Any
    text: str
    group: str
    about: str = ""
    """The description of its group."""

    @property
    def name(self) -> str:
        return self.place.rpartition(".")[2].replace("_", "-")

    @property
    def help(self) -> str:
        """The text for argparse: what the flag does, with the names from the tables it mentions, and its default."""
        value = " ".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        default = "" if isinstance(value, bool) or value in (None, "") else f" (default: {value})"
        return sentence(with_names(self.text) + default) or " "


@dataclass(frozen=True)
class Word:
    """A positional argument of the command line."""

    name: str
    kind: Kind
    """many, any: all remaining words as one tuple; spread: all remaining words as separate arguments (`*others`)."""
    text: str

    @property
    def shown(self) -> str:
        name = self.name.upper()
        name += " ..." * (self.kind in ("many", "any", "spread"))
        return name if self.kind in ("needed", "many") else f"[{name}]"


DATA = Word("data", "optional", "the images to learn from; the same as --data")


def flags_of(function: Callable[..., Any], recipe: Any = None) -> list[Flag]:
    """The flags of a function, followed by those of its recipe."""
    texts, hints = argument_texts(function), get_type_hints(function)
    hidden = {name for name, hint in get_type_hints(function, include_extras=True).items() if python_only(hint)}
    named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    named = [p for p in named if p.name not in hidden]
    own = [Flag(p.name, hints[p.name], p.default, texts.get(p.name, ""), "options") for p in named]
    if recipe is None:
        return own
    flags = [*own, Flag(RECIPE, str, "default", START, "recipe options"), *settings_of(recipe, RECIPE)]
    first = [dataclasses.replace(f, group=FIRST) for name in MOST_USED for f in flags if f.name == name]
    return first + [flag for flag in flags if flag.name not in MOST_USED]


def sentence(text: str) -> str:
    """A help text for argparse, with a capital letter first."""
    text = text.strip().replace("%", "%%")
    return text[:1].upper() + text[1:]


def python_only(hint: Any) -> bool:
    """Whether a parameter is left out of the command line: `Annotated[..., PYTHON_ONLY]`."""
    return PYTHON_ONLY in getattr(hint, "__metadata__", ())


def settings_of(settings: Any, place: str) -> Iterator[Flag]:
    """The flags of a settings dataclass, its nested sections last."""
    texts, hints = attribute_texts(type(settings)), get_type_hints(type(settings))
    group, about = f"{place.rpartition('.')[2]} options", paragraph(type(settings))
    sections = []
    for field in dataclasses.fields(settings):
        value, where = getattr(settings, field.name), f"{place}.{field.name}"
        if dataclasses.is_dataclass(value):
            sections.append((value, where))
        else:
            yield Flag(where, hints[field.name], value, texts.get(field.name, ""), group, about)
    for value, where in sections:
        yield from settings_of(value, where)


def words_of(function: Callable[..., Any]) -> list[Word]:
    """The positional arguments of a function; DATA stands in for a recipe."""
    texts, hints = argument_texts(function), get_type_hints(function)
    places = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    return [
        DATA if p.name == RECIPE else Word(p.name, word_kind(p, hints[p.name]), texts.get(p.name, "")) for p in places
    ]


def word_kind(parameter: inspect.Parameter, hint: Any) -> Kind:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "spread"
    needed, many = parameter.default is parameter.empty, get_origin(hint) in (tuple, Sequence)
    return ("many" if needed else "any") if many else ("needed" if needed else "optional")


def usage(function: Callable[..., Any], prog: str) -> str:
    return " ".join([prog, *(word.shown for word in words_of(function)), "[options]"])


def with_names(text: str) -> str:
    """The text with each table, such as `crlf.methods.METHODS`, replaced by the names it holds."""

    def names(found: re.Match[str]) -> str:
        return ", ".join(getattr(importlib.import_module(found[1]), found[2]))

    return re.sub(r"\b(crlf(?:\.\w+)*)\.([A-Z_]{2,})\b", names, text)


def read(
    function: Callable[..., Any], recipe: Any, arguments: list[str], prog: str
) -> tuple[list[Any], dict[str, Any]]:
    """Parse a command line for a function.

    Returns:
        The positional values in order, and the values of the flags that were given, by their `place`.

    Raises:
        InputError: an unknown flag, a value of the wrong type, or a missing or surplus word.
    """
    flags = flags_of(function, recipe)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found, rest = parse(parser_of(flags, prog), with_choices(spelt(arguments[:end]), flags))
    for word in rest:
        if len(word) > 1 and word.startswith("-") and not is_number(word):
            raise stranger(word, flags, prog)
    values = {place: tuple(value) if isinstance(value, list) else value for place, value in found.items()}
    return placed(words_of(function), rest + arguments[end + 1 :], usage(function, prog)), values


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of the flags that a parser knows, and the other words.

    Raises:
        InputError: a flag with a missing or wrong value.
    """
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from None
    return vars(found), rest


def stranger(word: str, flags: list[Flag], prog: str) -> InputError:
    given = word.partition("=")[0]
    near = difflib.get_close_matches(given.lstrip("-").replace("_", "-"), [flag.name for flag in flags], n=1)
    hint = f"Did you mean --{near[0]}?" if near else f"`{prog} --help` lists all."
    return InputError(f"flag {given!r} is not known. {hint}")


def placed(words: list[Word], given: list[str], form: str) -> list[Any]:
    """The positional values from the given words.

    Raises:
        InputError: a word is missing, or there is one too many.
    """
    values: list[Any] = []
    for word in words:
        if word.kind in ("needed", "many") and not given:
            raise InputError(f"{word.name.upper()} is missing: {form}")
        some = 1 if word.kind in ("needed", "optional") else len(given)
        taken, given = given[:some], given[some:]
        values += [tuple(taken)] if taken and word.kind in ("many", "any") else taken
    if given:
        raise InputError(f"{given[0]!r} is one argument too many: {form}")
    return values


def spelt(arguments: list[str]) -> list[str]:
    """Flags as argparse expects them: `--batch-size` for `--batch_size`, and `--lr=-1e-3` for `--lr -1e-3`, since
    argparse recognises negative numbers such as -0.5 but not -1e-3."""
    found: list[str] = []
    for word in arguments:
        if word.startswith("-") and is_number(word) and found and re.fullmatch(r"--[\w-]+", found[-1]):
            found[-1] += f"={word}"
        else:
            flag, equals, value = word.partition("=")
            found.append(flag.replace("_", "-") + equals + value if word.startswith("--") else word)
    return found


def with_choices(arguments: list[str], flags: list[Flag]) -> list[str]:
    """`--resume-auto` for `--resume auto` and `--resume=auto`: if argparse knew of an optional value, it would take any
    word behind the flag for it."""
    known = {f"--{flag.name}": besides_bool(flag.hint) for flag in flags}
    found: list[str] = []
    for word in arguments:
        if found and word in known.get(found[-1], ()):
            found[-1] += f"-{word}"
        else:
            flag, _, value = word.partition("=")
            found.append(f"{flag}-{value}" if value in known.get(flag, ()) else word)
    return found


def besides_bool(hint: Any) -> tuple[str, ...]:
    """The words that a flag takes besides none: "auto" for `bool | Literal["auto"]`."""
    kinds = get_args(hint)
    return tuple(choice for kind in kinds for choice in get_args(kind)) if bool in kinds else ()


def is_number(word: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(float(word)) or True
    return False


def parser_of(flags: list[Flag], prog: str, words: Sequence[Word] = ()) -> argparse.ArgumentParser:
    """The parser of the flags, which also formats the help. It sets no defaults: a flag that is not given is absent."""
    form: Any = partial(argparse.HelpFormatter, width=columns() - 2)
    parser = argparse.ArgumentParser(
        prog, formatter_class=form, add_help=False, allow_abbrev=False, exit_on_error=False
    )
    places = parser.add_argument_group("arguments")
    for word in words:
        places.add_argument(word.name, metavar=word.name.upper(), help=sentence(word.text or RUN))
    about = {flag.group: flag.about for flag in flags} | {"options": ""}
    groups = {title: parser.add_argument_group(title, text or None) for title, text in about.items()}
    for flag in flags:
        add(groups[flag.group], flag)
    groups["options"].add_argument(*HELP, action="store_true", default=argparse.SUPPRESS, help="Show this help.")
    return parser


def add(group: Any, flag: Flag) -> None:
    names = [f"-{flag.name}"] * (len(flag.name) == 1) + [f"--{flag.name}"]
    common = {"dest": flag.place, "default": argparse.SUPPRESS}
    choices = besides_bool(flag.hint)
    for word in choices:  # see `with_choices`
        group.add_argument(f"{names[-1]}-{word}", action="store_const", const=word, help=argparse.SUPPRESS, **common)
    if flag.hint is bool or choices:  # help shows the one that changes the default
        for value, name in ((True, names), (False, [f"--no-{flag.name}"])):
            text = flag.help if value else f"Turn off: {flag.help[0].lower()}{flag.help[1:]}"
            text = argparse.SUPPRESS if value == flag.default else text
            group.add_argument(*name, action="store_const", const=value, help=text, **common)
        return
    many = get_origin(flag.hint) is tuple
    shown, kind = kind_of(get_args(flag.hint)[0] if many else flag.hint)
    group.add_argument(*names, type=kind, metavar=shown, nargs="*" if many else None, help=flag.help, **common)


def kind_of(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """The metavar of a type, and the function that converts a word to it."""
    if hint is int:
        return "INT", partial(converted, int, "a whole number")
    if hint is float:
        return "FLOAT", partial(converted, float, "a number")
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        return "{" + ",".join(choices) + "}", partial(chosen, choices)
    return ("PATH" if Path in get_args(hint) else "NAME"), str


def converted(kind: Callable[[str], Any], rule: str, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {rule}, not {word!r}") from None


def chosen(choices: dict[str, Any], word: str) -> Any:
    if word not in choices:
        raise argparse.ArgumentTypeError(str(unknown("choice", word, choices)))
    return choices[word]


def help_of(function: Callable[..., Any], recipe: Any, prog: str) -> str:
    """The help of a command, as wide as the terminal."""
    parser = parser_of(flags_of(function, recipe), prog, words_of(function))
    parser.usage, parser.description = usage(function, prog), paragraph(function)
    return parser.format_help()


def changed(settings: Any, values: dict[str, Any], place: str = RECIPE) -> Any:
    """A copy of a settings dataclass with the values of the flags.

    Raises:
        InputError: a setting is out of its range.
    """
    new = {}
    for field in dataclasses.fields(settings):
        value, where = getattr(settings, field.name), f"{place}.{field.name}"
        if dataclasses.is_dataclass(value):
            new[field.name] = changed(value, values, where)
        elif where in values:
            new[field.name] = values[where]
    return dataclasses.replace(settings, **new) if new else settings
