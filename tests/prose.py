"""Look for bad English in the pages and in the help texts: with proselint, and for phrases that we do not want again.

    pip install -e '.[lint]' && python tests/prose.py [FILE ...]

Prints `file:line: what is wrong`, and ends with 1 if there is anything. Code and generated tables are left out.
tests/test_prose.py looks for the phrases on every machine, so proselint is imported only here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**/*.md", ".github/**/*.md")

# Checks of proselint that are off: on these pages they only gave false alarms.
OFF = {
    "typography.symbols.ellipsis": "command lines have three dots",
    "typography.symbols.curly_quotes": "command lines and Markdown have straight quotes",
    "typography.diacritical_marks": "`resume` is a verb and a flag here, not a résumé",
    "misc.phrasal_adjectives": "it takes `multiply-adds` for an adverb",
    "dates_times.dates": "`CIFAR-10's` is not a decade, and `a dash after from` not a date",
    "weasel_words": "`very` is sometimes needed, and the advice is a joke",
}

# A pattern, and what to write instead. They come from pages of CRLF that read as if translated.
PHRASES = {
    r"for want of": "because there is no …",
    r"of one's own": "your own",
    r"what is (no|not an?) (image|picture|file)\b": "files that are not images",
    r"(that|which|what) (is|are) no (image|picture|shard|file|tar|number)s?\b": "is not a …, are not …",
    r"\bare no (image|shard|file|picture|number)s\b": "are not …",
    r"\bis no (tar|image|shard|picture|number)\b": "is not a …",
    r"\b(a|an|the) \w+ (more|less) (a|an|each) \w+": "one more … per …",
    r"\b(operations|images|views|products|points|bytes|embeddings|labels|gigabytes) (a|an) "
    r"(second|view|image|class|step|epoch|GPU|process|pixel|host|machine|row)\b": "per",
    r"\b(GPU|process|host|machine|task|class|row)s? (a|an) (GPU|process|host|machine|task|class|row)\b": "per",
    r"\bnot tells?\b|\btells? (anything|nothing)\b|\btells? the classes\b": "shows, distinguishes",
    r"\b(none|nothing) was (tried|run|measured)\b": "we have not tried …",
    r"what speaks for": "the reasons for",
    r"\bis whole, or\b": "say what happens in two clauses",
    r"\b(held|hold|holding) (against|beside)\b": "compared with, next to",
    r"\bof any number\b": "any number of …",
    r"\bA number of its own\b": "a separate number",
    r"\bas it stands\b|\bstands? in (the|a|its) (table|file|page|line)\b": "is in",
    r"\b(lets|let) go of\b": "releases",
    r"\bserves? for\b": "works for",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(whereof|thereof|wherein|therein|lest|amongst|whilst|hence|thus)\b": "plain words",
    r"\bsees? through\b": "understands",
    r"\bthe one that\b.{0,30}\bhas\b": "name it",
    r"\bit is (a|an|the) \w+ for good\b|\bfor good\b": "from then on, permanently",
    r"\bgo(es)? on\b": "continues",
    r"\bhere, not there\b": "name both places",
    r"\bmade of (it|them) by\b": "a verb in the active voice",
}


def prose(page: str) -> str:
    """The page with an empty line for each line of code and of a generated table, and `§` for code in a sentence.

    A heading ends with a full stop, so that its last word and the next one are not a repetition.
    """
    lines, closing, before = [], "", ""
    for line in page.split("\n"):
        opens = re.match(r"\s*(```|<!-- (?!end)[\w-]+ -->)", line)
        indented = line.startswith("    ") and (not before or before.startswith("    "))
        is_code = bool(closing) or bool(opens) or indented
        if closing and line.strip().startswith(closing):
            closing = ""
        elif not closing and opens:
            closing = "```" if "```" in line else "<!-- end"
        lines.append("" if is_code else f"{line}." if line.startswith("#") else line)
        before = line
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)|https?://\S+", "§", "\n".join(lines))
    return re.sub(r"`[^`\n]*`", "§", text)


def phrases(text: str) -> Iterator[tuple[int, str]]:
    """The line and the message of each phrase that we do not want; a phrase may run over the end of a line."""
    for pattern, instead in PHRASES.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, flags=re.IGNORECASE):
            found = " ".join(match[0].split())
            yield text.count("\n", 0, match.start()) + 1, f"'{found}': write '{instead}'"


def linted(name: str, text: str) -> Iterator[tuple[int, str]]:
    """What proselint says of a text."""
    from proselint.checks import __register__ as every_check
    from proselint.config import DEFAULT
    from proselint.registry import CheckRegistry
    from proselint.tools import LintFile

    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(every_check)
    off = dict.fromkeys(OFF, False)  # first: proselint takes the first name that fits
    checks = {**off, **{name: on for name, on in DEFAULT["checks"].items() if name not in off}}
    for found in LintFile(name, text).lint({**DEFAULT, "checks": checks}):
        yield found.pos[0], f"{found.check_result.message} ({found.check_result.check_path})"


def pages() -> dict[str, str]:
    """The prose of every page, by its path."""
    paths = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    return {path.relative_to(ROOT).as_posix(): prose(path.read_text(encoding="utf-8")) for path in paths}


def helps() -> dict[str, str]:
    """The help of every command, by its command line, with a colon for the spaces between an option and its text."""
    from crlf.cli import COMMANDS, command, flags, overview
    from crlf.recipe import RECIPES

    found = {"crlf --help": overview()}
    for name in COMMANDS:
        function = command(name)
        recipe = RECIPES["default"] if flags.RECIPE in inspect.signature(function).parameters else None
        found[f"crlf {name} --help"] = flags.help_of(function, recipe, f"crlf {name}")
    return {name: re.sub(r"(?<=\S) {2,}", ": ", text) for name, text in found.items()}


def main(files: list[str]) -> int:
    given = {file: prose(Path(file).read_text(encoding="utf-8")) for file in files}
    chosen = given or {**pages(), **helps()}
    found = [
        f"{name}:{line}: {what}"
        for name, text in chosen.items()
        for line, what in sorted([*phrases(text), *linted(name, text)])
    ]
    print("\n".join(found) or f"prose: nothing in {len(chosen)} texts")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
