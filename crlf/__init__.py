"""CRLF: train an encoder on images without labels, and evaluate it.

import crlf
run = crlf.run(crlf.Recipe(data="photos"))  # or stage by stage:
run = crlf.pretrain(crlf.Recipe(epochs=10))
crlf.embed(run), crlf.probe(run), crlf.draw(run), crlf.report(run)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crlf.data import ImageSet as ImageSet
    from crlf.embedding.embed import embed as embed
    from crlf.errors import InputError as InputError
    from crlf.evaluation.compare import compare as compare
    from crlf.evaluation.doctor import doctor as doctor
    from crlf.evaluation.finetune import finetune as finetune
    from crlf.evaluation.probe import probe as probe
    from crlf.exporters.export import export as export
    from crlf.exporters.push import push as push
    from crlf.inference.classify import classify as classify
    from crlf.inference.encoder import Encoder as Encoder
    from crlf.inference.encoder import load as load
    from crlf.inference.search import search as search
    from crlf.inference.sklearn import ContrastiveEncoder as ContrastiveEncoder
    from crlf.pipelines.images_to_report import run as run
    from crlf.pipelines.trial import trial as trial
    from crlf.recipe import RECIPES as RECIPES
    from crlf.recipe import Recipe as Recipe
    from crlf.runs.run import Run as Run
    from crlf.training.pretrain import pretrain as pretrain
    from crlf.visualization.explore import explore as explore
    from crlf.visualization.figures import draw as draw
    from crlf.visualization.report import report as report
    from crlf.visualization.summary import summary as summary

__version__ = "0.1.0"

# Each name is imported at first use, so that `crlf --help` starts fast, without torch.
_HOMES = {
    "run": "pipelines.images_to_report",
    "trial": "pipelines.trial",
    "pretrain": "training.pretrain",
    "embed": "embedding.embed",
    "search": "inference.search",
    "probe": "evaluation.probe",
    "finetune": "evaluation.finetune",
    "classify": "inference.classify",
    "draw": "visualization.figures",
    "report": "visualization.report",
    "compare": "evaluation.compare",
    "doctor": "evaluation.doctor",
    "explore": "visualization.explore",
    "export": "exporters.export",
    "push": "exporters.push",
    "summary": "visualization.summary",
    "load": "inference.encoder",
    "Encoder": "inference.encoder",
    "ContrastiveEncoder": "inference.sklearn",
    "Recipe": "recipe",
    "RECIPES": "recipe",
    "Run": "runs.run",
    "ImageSet": "data",
    "InputError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crlf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"crlf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
