"""The confusion matrix as a table: it can be read aloud, and a cell shows its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from crlf.text import percent
from crlf.visualization.report.html import section
from crlf.visualization.report.pictures import Shown


def confusion(shown: Shown, labels: np.ndarray, predicted: np.ndarray) -> str:
    """The confusion matrix as a table of all images of the split, a cell a button that shows its images."""
    K = len(shown.names)
    if K > 20:
        return ""
    counts = np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    worst = max(float((share * ~np.eye(K, dtype=bool)).max()), 1e-9)
    head = "".join(f"<th scope=col><span>{escape(name)}</span></th>" for name in shown.names)
    rows = "".join(
        f"<tr><th scope=row>{escape(shown.names[i])}</th>{''.join(cells(shown.names, i, counts, share, worst))}"
        f"<td class=recall>{percent(share[i, i]) if counts[i].any() else '–'}</td></tr>\n"
        for i in range(K)
    )
    right = percent(counts.trace() / max(1, counts.sum()))
    html = (
        f"<p>{right} of {counts.sum():,} {shown.split} images are right. A row is a class, a column what the linear "
        "probe said. Choose a number to see its images.</p>\n"
        "<div class=scroll tabindex=0 role=region aria-label='Confusion matrix'><table class=confusion>"
        f"<thead><tr><td></td>{head}<th scope=col><span>right</span></th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        "<div id=cell class=card aria-live=polite hidden></div>\n"
    )
    return section("Confusion matrix", html, "confusion")


def cells(names: Sequence[str], i: int, counts: np.ndarray, share: np.ndarray, worst: float) -> Iterable[str]:
    for j, count in enumerate(counts[i].tolist()):
        kind, depth = ("right", share[i, j]) if i == j else ("off", share[i, j] / worst)
        dark = " deep" if depth > 0.55 else ""
        label = f"{names[i]} taken for {names[j]}: {count}" if i != j else f"{names[i]} recognised: {count}"
        yield (
            f'<td><button type=button class="{kind}{dark}" style="--v:{100 * depth:.0f}%" data-true={i} data-said={j} '
            f'aria-label="{escape(label)}"{" disabled" * (count == 0)}>{count or "·"}</button></td>'
        )
