"""Whether training paid: compares a run's scores with those of the same encoder before its first step."""

from __future__ import annotations

from typing import Any, NamedTuple

MEASURES = {"linear": "linear probe", "knn": "kNN", "crops": "finding an image by a crop of it"}
# What to try if training did not pay, with and without trained weights at the start.
OF_TRAINED = "fewer steps (--minutes, --epochs), a lower --lr, more frozen layers (--freeze), or the weights as given"
ADVICE = "train longer (--minutes, --epochs), on smaller images (--image-size), or ask `crlf doctor`"


class Payoff(NamedTuple):
    """The gain from training."""

    paid: bool | None
    """Whether training paid; None if the gain is within noise."""
    what: str
    """The verdict in a few words."""
    numbers: str
    advice: str
    """What to try if it did not pay."""

    @property
    def sentence(self) -> str:
        """The verdict with its numbers, and what to try if training did not pay."""
        return f"{self.what}: {self.numbers}." + ("" if self.paid else f" Try: {self.advice}.")


def payoff(scores: dict[str, Any]) -> Payoff | None:
    """The gain from training according to a run's scores; None if it was not measured.

    With labels it uses the linear probe and kNN on test images, each with the paired interval of its gain over the
    untrained encoder and over raw pixels; without labels it uses the crops (crlf.evaluation.crops).
    """
    names = [name for name in ("linear", "knn") if f"{name}_over_untrained" in scores] or ["crops"]
    gains = [(name, scores[key]) for name in names if (key := f"{name}_over_untrained") in scores]
    if not gains:
        return None
    told = " and ".join(told_gain(scores, name, gain) for name, gain in gains)
    advice = OF_TRAINED if "started_from" in scores else ADVICE
    lows, highs = ([gain["interval"][end] for _, gain in gains] for end in (0, 1))
    beaten = [name for name in names if scores.get(f"{name}_over_pixels", {"difference": 0})["difference"] < 0]
    if max(lows) > 0 and min(highs) >= 0 and not beaten:
        return Payoff(True, "Training paid", told, advice)
    if beaten:
        pixels = " and ".join(
            f"{MEASURES[name]} of raw pixels {100 * scores[f'pixels_{name}_accuracy']:.1f} %" for name in beaten
        )
        return Payoff(False, "Training did not pay, raw pixels do better", f"{told}; {pixels}", advice)
    if min(highs) < 0:
        return Payoff(False, "Training did not pay", told, advice)
    return Payoff(None, "Training made no clear difference", told, advice)


def told_gain(scores: dict[str, Any], name: str, gain: dict[str, Any]) -> str:
    """Such as: linear probe A %, N points above the same encoder untrained (LOW to HIGH)."""
    before = "the weights it started from" if "started_from" in scores else "the same encoder untrained"
    low, high = gain["interval"]
    where = "above" if gain["difference"] >= 0 else "below"
    apart = f"{abs(100 * gain['difference']):.1f} points {where} {before}"
    between = f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−")
    own = scores.get(f"{name}_accuracy")  # missing if `untrained` was the only probe
    return f"{MEASURES[name]}{'' if own is None else f' {100 * own:.1f} %'}, {apart} ({between})"
