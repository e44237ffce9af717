"""CRLF: learn an encoder from images without labels, and show what it is worth.

import crlf
run = crlf.pretrain(crlf.Recipe(epochs=10))
crlf.embed(run), crlf.probe(run), crlf.draw(run), crlf.report(run)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crlf.compare import compare as compare  # now, so that the names of these modules mean the functions
from crlf.doctor import doctor as doctor
from crlf.explore import explore as explore
from crlf.export import export as export
from crlf.report import report as report
from crlf.summary import summary as summary

if TYPE_CHECKING:
    from crlf.classifying import classify as classify
    from crlf.data import ImageSet as ImageSet
    from crlf.embeddings import embed as embed
    from crlf.errors import InputError as InputError
    from crlf.estimator import ContrastiveEncoder as ContrastiveEncoder
    from crlf.figures import draw as draw
    from crlf.finetuning import finetune as finetune
    from crlf.hub import push as push
    from crlf.loading import Encoder as Encoder
    from crlf.loading import load as load
    from crlf.neighbours import search as search
    from crlf.probes import probe as probe
    from crlf.recipe import RECIPES as RECIPES
    from crlf.recipe import Recipe as Recipe
    from crlf.runs import Run as Run
    from crlf.training import pretrain as pretrain

__version__ = "0.1.0"

# What needs torch is loaded at first use, so that `crlf --help` starts at once.
_HOMES = {
    "pretrain": "training",
    "embed": "embeddings",
    "probe": "probes",
    "push": "hub",
    "finetune": "finetuning",
    "classify": "classifying",
    "draw": "figures",
    "load": "loading",
    "search": "neighbours",
    "ContrastiveEncoder": "estimator",
    "Encoder": "loading",
    "Recipe": "recipe",
    "RECIPES": "recipe",
    "Run": "runs",
    "ImageSet": "data",
    "InputError": "errors",
}
__all__ = [*_HOMES, "__version__", "compare", "doctor", "explore", "export", "report", "summary"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crlf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"crlf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
