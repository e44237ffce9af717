"""What two ranks are told that do not train the same run."""

from __future__ import annotations

import pytest

from crlf.training.agreement import unlike

FIRST = {"images": 64, "fingerprint": "a", "recipe": {"data": "photos", "seed": 0, "normalisation": {"mean": [0.5]}}}
OTHER_MEAN = {"data": "photos", "seed": 0, "normalisation": {"mean": [0.4]}}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"recipe": FIRST["recipe"] | {"seed": 1}}, "has seed 1, not 0 as rank 0: give all hosts the same command"),
        ({"images": 60, "fingerprint": "b"}, "has 60 images, not 64 as rank 0: give all hosts the same files"),
        ({"fingerprint": "b"}, "has other images than rank 0: give all hosts the same files"),
        # The mean follows from the images.
        ({"fingerprint": "b", "recipe": OTHER_MEAN}, "has other images than rank 0: give all hosts the same files"),
        ({"recipe": OTHER_MEAN}, "has mean [0.4], not [0.5] as rank 0: give all hosts the same command"),
        (
            {"images": 60, "recipe": FIRST["recipe"] | {"data": "paintings"}},
            "has data 'paintings', not 'photos' as rank 0: give all hosts the same command",
        ),
    ],
)
def test_the_cause_is_named_rather_than_what_follows_from_it(change: dict, said: str):
    assert unlike(FIRST, FIRST | change) == said
