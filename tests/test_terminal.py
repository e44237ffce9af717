"""A command in a real terminal, before a reader who goes away, a full disk, few letters, or without a home."""

from __future__ import annotations

import errno
import io
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import terminal
from PIL import Image
from sampling import some
from terminal import PIPES, PROGRAM, ROOT, Terminal, here, seen, there

import crlf
from crlf import cli
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runtime.terminal import BROKEN_PIPE
from crlf.visualization.report import some_home

TINY = [
    "pretrain",
    "shapes",
    "--subset",
    "128",
    "--batch-size",
    "32",
    "--views",
    "2",
    "--epochs",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    recipe = Recipe(data="shapes", subset=128, batch_size=64, views=2, epochs=1)
    return crlf.pretrain(recipe, out=tmp_path_factory.mktemp("made") / "run", device="cpu")


# On a terminal


@pytest.mark.parametrize("columns", some([60, 80, 120], [80]))
def test_a_run_leaves_whole_lines_and_no_ruins_of_its_bar(columns: int, tmp_path: Path):
    words, end = [*TINY, "--out", str(tmp_path / "run")], Terminal(columns, "colours")
    code, said = there(end, [*PROGRAM, *words]) if columns == 80 else here(end, *words)
    assert code == 0 and "\r" in said, said
    bars = [part for line in said.split("\n") for part in line.split("\r") if "|" in part]
    assert bars and all(len(bar) <= columns for bar in bars)  # a longer one would stay, a line at each step
    assert any("loss" in bar and "left" in bar and bar.rstrip()[-1].isdigit() for bar in bars)  # whole even at 60
    rows = seen(said)
    starts = ["estimate: ", "kNN during training: ", "epoch 1/2  loss ", "epoch 2/2  loss ", "next: crlf embed ", ""]
    assert len(rows) == len(starts) and all(row.startswith(start) for row, start in zip(rows, starts, strict=True))


ENDS = {
    "embed": ["embedded 128 training and 128 test images in ", "next: crlf probe "],
    "probe": [
        *(f"probe {i}/2: {name}" for i, name in ((1, "linear"), (2, "knn"))),
        "linear probe ",
        "next: crlf draw ",
    ],
    "draw": ["7 figures in ", "next: crlf report "],
    "report": ["report of ", "next: crlf search "],
}


@pytest.mark.parametrize("end", [Terminal(80, "colours"), pytest.param(PIPES, marks=pytest.mark.long)])
def test_each_stage_says_what_it_reached_where_it_wrote_and_what_comes_next(
    end: Terminal, run: crlf.Run, tmp_path: Path
):
    place = tmp_path / "my run"  # which a shell takes for two words
    shutil.copytree(run.path, place)
    for name, starts in ENDS.items():
        code, said = here(end, name, str(place), *(["--probes", "linear,knn"] if name == "probe" else []))
        rows = seen(said)
        assert code == 0 and len(rows) == len(starts) + 1 and rows[-1] == "", said
        assert all(row.startswith(start) for row, start in zip(rows, starts, strict=False)), said
        assert repr(str(place))[:-1] in rows[-3] and f" '{place}'" in rows[-2]
        assert end.columns or not {"\r", "\x1b"} & set(said)
    assert re.search(r"kNN \d+\.\d %, chance 12\.5 %: '.*/scores\.json' \(linear .* s, knn .* s\)", probed(end, place))


def probed(end: Terminal, place: Path) -> str:
    return here(end, "probe", str(place), "--probes", "linear,knn").text


def test_help_and_a_failure_name_no_next_command(tmp_path: Path):
    assert "next:" not in here(PIPES, "draw", "--help").text + here(PIPES, "draw", str(tmp_path)).text


def test_what_is_wrong_is_one_line_in_a_process_of_its_own():
    code, said = there(Terminal(80, "colours"), [*PROGRAM, "pretrain", "shapes2"])
    assert code == 2 and said.startswith("crlf pretrain: error: data set 'shapes2' is not known: choose from cifar10, ")
    assert said.endswith(" Did you mean 'shapes'?\n") and said.count("\n") == 1 and "\x1b" not in said


# Readers who go away, and full disks


class Failing(io.StringIO):
    """A stream that takes so many writes, and then fails for good."""

    def __init__(self, writes: int, code: int):
        super().__init__()
        self.left, self.code = writes, code

    def write(self, text: str) -> int:
        if not self.left:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1
        return super().write(text)


def stage() -> None:
    """A command that says several things, on both streams, some where it expects trouble with a file."""
    print("one")
    try:
        print("two")
        print("three", file=sys.stderr)
    except Exception as error:
        raise InputError("the file cannot be written") from error
    print("four")


def refuses() -> None:
    raise InputError("no")


def until_it_is_done(patch: pytest.MonkeyPatch, name: str, code: int, function=stage) -> list[tuple[int, str]]:
    """The exit code, and what the other stream heard, when a stream fails at the first write, at the second, ..."""
    found: list[tuple[int, str]] = []
    while not found or found[-1][0] == found[0][0]:
        other = io.StringIO()
        patch.setattr(sys, name, Failing(len(found), code))
        patch.setattr(sys, "stderr" if name == "stdout" else "stdout", other)
        found.append((cli.command_line(function, [], "crlf stage"), other.getvalue()))
    return found


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_who_goes_away_at_any_point_ends_it_quietly(name: str, monkeypatch: pytest.MonkeyPatch):
    *cut, (code, _) = until_it_is_done(monkeypatch, name, errno.EPIPE)
    assert code == 0 and len(cut) == {"stdout": 6, "stderr": 2}[name]  # a print is two writes
    assert {code for code, _ in cut} == {BROKEN_PIPE} and not any("error" in heard for _, heard in cut)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_one_line(code: int, monkeypatch: pytest.MonkeyPatch):
    *cut, (done, _) = until_it_is_done(monkeypatch, "stdout", code)
    line = f"crlf stage: error: stdout cannot be written: {os.strerror(code)}\n"
    assert done == 0 and all(code == 2 and heard.removeprefix("three\n") == line for code, heard in cut)


def test_where_nobody_hears_the_error_it_ends_quietly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Failing(0, errno.ENOSPC))
    assert cli.command_line(refuses, [], "crlf stage") == 2
    monkeypatch.setattr(sys, "stderr", Failing(0, errno.EPIPE))
    assert cli.command_line(refuses, [], "crlf stage") == BROKEN_PIPE


def test_closed_streams(monkeypatch: pytest.MonkeyPatch):
    """`crlf summary RUN >&- 2>&-`: Python then has None in their place."""
    monkeypatch.setattr(sys, "stdout", None), monkeypatch.setattr(sys, "stderr", None)
    assert cli.command_line(stage, [], "stage") == 0 and cli.command_line(refuses, [], "stage") == 2


FULL = "cannot be written: No space left on device\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """With `crlf` in the place of CRLF, and the exit code of the first of a pipe."""
    program = f"{sys.executable} -c 'import sys; from crlf.cli import main; sys.exit(main())'"
    line = f"set -o pipefail; {command.replace('CRLF', program)}"
    env = PIPES.environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.mark.parametrize(
    "command, code, said",
    some(
        [
            ("CRLF pretrain --help | true", BROKEN_PIPE, ""),
            ("CRLF summary {run} | true", BROKEN_PIPE, ""),
            (f"{sys.executable} simclr_train.py --help | true", BROKEN_PIPE, ""),
            ("CRLF summary {run} > /dev/full", 2, "crlf summary: error: stdout " + FULL),
            ("CRLF pretain 2> /dev/full", 2, ""),
            ("CRLF --version | true", BROKEN_PIPE, ""),
            ("CRLF pretain 2>&1 | true", BROKEN_PIPE, ""),
            ("CRLF --help > /dev/full", 2, "crlf: error: stdout " + FULL),
            ("CRLF summary {run} >&- 2>&-", 0, ""),
        ],
        5,
    ),
)
def test_in_a_shell(command: str, code: int, said: str, run: crlf.Run):
    """Python flushes once more when it ends: what is left in its streams must not bring the trouble back."""
    done = shell(command.format(run=run.path))  # `true` is gone before Python has started
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


# Few letters


@pytest.mark.parametrize(
    "encoding, written",
    [
        ("ascii", rb"\u4f60 \xe9 \xd7 \udcff"),
        ("cp437", b"\\u4f60 \x82 \\xd7 \\udcff"),
        ("cp1252", b"\\u4f60 \xe9 \xd7 \\udcff"),
        ("utf-8", "你 é × \\udcff".encode()),
    ],
)
def test_what_cannot_be_encoded_is_written_as_its_number(encoding: str, written: bytes, monkeypatch):
    """你 as in a name of a file, udcff as Python reads a name that is no UTF-8."""
    outputs = [io.BytesIO(), io.BytesIO()]
    for name, output in zip(("stdout", "stderr"), outputs, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(output, encoding=encoding))

    def stage() -> None:
        print("你 é × \udcff")
        raise InputError("你 é × \udcff")

    assert cli.command_line(stage, [], "stage") == 2
    assert [output.getvalue() for output in outputs] == [written + b"\n", b"stage: error: " + written + b"\n"]


def test_help_in_few_letters():
    command, env = [*PROGRAM, "pretrain", "--help"], PIPES.environment | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=env, check=False)
    expected = here(PIPES, "pretrain", "--help").text.encode("ascii", "backslashreplace")
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", expected) and b"1 \\xb1 this" in expected


# No home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose user is a bare number: no HOME, no CRLF_CACHE, and nobody of that number."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "CRLF_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert os.path.expanduser("~") == "~"
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.mark.parametrize("data", ["photos", "cifar10"])
def test_without_a_home_the_cache_is_asked_for(data: str, homeless: None, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.effect_noise((40, 40), 50 + i).save(tmp_path / "photos" / f"{i}.png")
    line = terminal.refused("pretrain", data, "--batch-size", "4", "--image-size", "0", "--out", "run", "--epochs", "1")
    assert "HOME is not set: set CRLF_CACHE to a folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # no folder that is called ~
    monkeypatch.setenv("CRLF_CACHE", "~/cache")
    assert "the cache '~/cache' needs a home folder" in terminal.refused("pretrain", data, "--out", "run")


def test_without_a_home_there_is_one_for_an_import(homeless: None, monkeypatch: pytest.MonkeyPatch):
    with some_home():
        assert Path.home().is_dir()
    assert "HOME" not in os.environ
    with pytest.raises(ZeroDivisionError), some_home():
        raise ZeroDivisionError
    assert "HOME" not in os.environ
    monkeypatch.setenv("HOME", "/mine")
    with some_home():
        assert os.environ["HOME"] == "/mine"


@pytest.mark.long
def test_without_a_home_the_report_is_written(run: crlf.Run):
    """In a process of its own, since Bokeh asks for a home when it is first imported."""
    program = "import pwd; pwd.getpwuid = {}.__getitem__; " + PROGRAM[2]
    env = {name: value for name, value in PIPES.environment.items() if name != "HOME"}
    command = [sys.executable, "-c", program, "report", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0 and done.stderr.startswith("report of ") and run.file("report.html").is_file()
