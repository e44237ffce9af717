"""A process's share of a batch: alone it is the batch itself; several are in test_distributed.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_methods import EVERY, LABELS, small, views_of

from bench.shared_loss import Rehearsed
from crlf.methods import METHODS
from crlf.methods.base import compare, shares, spread, variance
from crlf.methods.simclr import nt_xent_views
from crlf.runtime import distributed
from crlf.runtime.sharing import WHOLE, SharedBatch, share_of


def test_alone_nothing_changes():
    z = torch.randn(2, 5, 3)
    assert share_of(5) is WHOLE and WHOLE.whole
    for same in (WHOLE.gather(z, dim=1), WHOLE.gather_views(z, 2), WHOLE.total(z), WHOLE.average(z), WHOLE.weighted(z)):
        assert same is z
    assert torch.equal(WHOLE.stack(z), z[None]) and WHOLE.count(10) == 10
    assert WHOLE.numbers(5, z.device).tolist() == list(range(5))


def test_a_share_knows_its_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    share = share_of(9)
    assert isinstance(share, SharedBatch) and not share.whole
    assert share.own == distributed.part_of(9) == range(6, 9) and share.count(6) == 18
    assert share.numbers(3, torch.device("cpu")).tolist() == [6, 7, 8]
    assert share.own_columns(torch.arange(9)).tolist() == [6, 7, 8]
    assert share.weighted(torch.tensor(3.0)) == 1


def test_every_method_of_the_table_that_compares_a_batch_shares_its_loss():
    shared = {name for name, kind in METHODS.items() if shares(kind)}
    assert shared >= {
        *("simclr", "dcl", "supcon", "mocov2", "mocov3", "nnclr", "barlow", "vicreg", "swav", "dino", "distill"),
        *("byol", "simsiam", "diet", "empssl", "lejepa", "resa"),
    }


@EVERY
@pytest.mark.parametrize("ranks", [2, 4])
def test_one_of_several_equal_shares_has_the_loss_of_all(name: str, ranks: int):
    """Where every process has the same rows, each has the same loss, which is that of the whole batch."""
    if not shares(METHODS[name]):
        pytest.skip(f"{name} is compared whole")
    method, own = small(name).double().eval(), len(LABELS) // ranks
    with torch.no_grad():
        z = [rows[:, :own] for rows in method.project([view.double() for view in views_of()])]
        told = LABELS[:own]
        whole, stats = compare(method, [torch.cat([rows] * ranks, dim=1) for rows in z], told.repeat(ranks))
        shared, theirs = compare(method, z, told, Rehearsed(own * ranks, ranks))
    torch.testing.assert_close(shared, whole)
    assert stats.keys() == theirs.keys()
    for key, value in stats.items():
        torch.testing.assert_close(theirs[key], value, msg=key)


def test_the_gradient_of_its_rows_is_whole_without_that_of_the_others():
    """Of copies each gets an equal part of what the rows get, where the batch is in one process."""
    own = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    nt_xent_views(torch.cat([own, own], dim=1), 0.5).backward()
    expected, own.grad = own.grad, None
    share = Rehearsed(6, 2)
    share.weighted(nt_xent_views(own, 0.5, share)).backward()
    torch.testing.assert_close(2 * own.grad, expected)


def test_variance_and_spread_over_shares():
    z = torch.randn(3, 4, dtype=torch.float64)
    whole, share = torch.cat([z, z]), Rehearsed(6, 2)
    for unbiased in (True, False):
        torch.testing.assert_close(variance(z, share, unbiased), whole.var(dim=0, unbiased=unbiased))
    torch.testing.assert_close(spread(z, share), spread(whole))


def test_the_record_says_what_the_page_says():
    """Processor time is divided by n within 15 %, for every method; memory, but for the methods that the page names."""
    lines = (Path(__file__).parents[2] / "bench" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if '"bench": "shared-loss"' in line][-1]["rows"]
    assert {row["embeddings"] for row in rows if row["method"] == "simclr"} == {4096, 8192, 16_384}
    for row in rows:
        assert row["times_n"] < 1.15, row
        assert row["memory_times_n"] < 1.15 or row["method"] in {"barlow", "vicreg", "distill"}, row
