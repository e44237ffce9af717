"""A compiled step computes what the plain one does, is whole in one graph for each part, and is gone afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from sampling import some
from small_methods import LABELS, small, views_of

import crlf
from crlf import augmentation
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import loss_of
from crlf.recipe import Recipe
from crlf.training import compile

TINY = Recipe(data="shapes", subset=64, batch_size=16, views=2, epochs=1, precision="float32")
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it, and hides this
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def without_a_compiler(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and differentiated as always, and then run operator by operator: the bits are the same."""
    torch._dynamo.reset()
    monkeypatch.setattr(compile, "BACKEND", "aot_eager")


@pytest.mark.parametrize("name", some(METHODS, ["simclr", "byol"]))
def test_every_part_is_one_graph_with_the_same_loss_and_gradients(name: str):
    plain, fast, make_view = small(name), small(name), Views(ViewSettings(), PUBLISHED["cifar10"])
    before = dict(torch._dynamo.utils.counters["graph_break"])
    with compile.compiled(fast, make_view, "kernels"):
        for seed in range(2):
            torch.manual_seed(seed)  # of dropout and queues
            ours = loss_of(plain, views_of(seed=seed), LABELS)[0]
            torch.manual_seed(seed)
            theirs = loss_of(fast, views_of(seed=seed), LABELS)[0]
            for loss in (ours, theirs):
                loss.backward()
            assert torch.equal(ours, theirs)
    assert dict(torch._dynamo.utils.counters["graph_break"]) == before
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert one.grad is None if other.grad is None else torch.equal(one.grad, other.grad)
    assert not {"project", "loss"} & set(vars(fast)) and make_view.apply is augmentation.apply  # as they were


@pytest.mark.parametrize("name", some([name for name, kind in METHODS.items() if kind.takes_local], ["simclr"]))
def test_small_views_do_not_part_the_graph(name: str):
    views = views_of(4)
    views[2:] = [view[:, :, 2:10, 2:10] for view in views[2:]]
    plain, fast, make_view = small(name), small(name), Views(ViewSettings(), PUBLISHED["cifar10"])
    plain.local_views = fast.local_views = 2
    before = dict(torch._dynamo.utils.counters["graph_break"])
    with compile.compiled(fast, make_view, "kernels"):
        assert torch.equal(loss_of(plain, views, None)[0], loss_of(fast, views, None)[0])
    assert dict(torch._dynamo.utils.counters["graph_break"]) == before


def test_views_are_one_graph_with_the_same_pixels():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    slow, fast = (Views(ViewSettings(blur=0.5), PUBLISHED["cifar10"]) for _ in range(2))
    before = dict(torch._dynamo.utils.counters["graph_break"])
    with compile.compiled(small("simclr"), fast, "kernels"):
        made = [make(images, torch.Generator().manual_seed(0), 2) for make in (slow, fast)]
    assert torch.equal(*made) and dict(torch._dynamo.utils.counters["graph_break"]) == before


@pytest.mark.parametrize("settings", some([{}, {"micro_batch": 6}, {"frozen_norm": True}, {"method": "supcon"}]))
def test_a_compiled_run_has_the_same_bits(tmp_path: Path, settings: dict):
    recipe = dataclasses.replace(TINY, head=None, **settings)
    runs = [
        crlf.pretrain(dataclasses.replace(recipe, compile=mode), out=tmp_path / mode, device="cpu")
        for mode in ("none", "kernels")
    ]
    one, other = (run.tensors("encoder_simclr.pth") for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_a_compiled_run_goes_on(tmp_path: Path):
    longer = dataclasses.replace(TINY, epochs=2, compile="kernels")
    straight = crlf.pretrain(longer, out=tmp_path / "straight", device="cpu")
    run = crlf.pretrain(longer, out=tmp_path / "run", device="cpu")
    run.file("checkpoint.pt").unlink()
    resumed = crlf.pretrain(longer, out=tmp_path / "run", device="cpu", resume=True)
    assert straight.file("loss.npy").read_bytes() == resumed.file("loss.npy").read_bytes()


def test_graphs_need_cuda(tmp_path: Path):
    with pytest.raises(InputError, match=r"^compile 'graphs' needs device 'cuda', not 'cpu': 'kernels' compiles any"):
        crlf.pretrain(dataclasses.replace(TINY, compile="graphs"), out=tmp_path, device="cpu")
    with pytest.raises(InputError, match=r"^compile 'graph' is not known: .* Did you mean 'graphs'\?$"):
        Recipe(compile="graph")


@CUDA
@pytest.mark.parametrize("mode", ["kernels", "graphs", "all"])
def test_on_a_gpu_the_losses_are_near_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str):
    monkeypatch.setattr(compile, "BACKEND", "inductor")
    runs = [
        crlf.pretrain(dataclasses.replace(TINY, compile=how, epochs=3), out=tmp_path / how, device="cuda")
        for how in ("none", mode)
    ]
    one, other = (torch.from_numpy(run.array("loss.npy")) for run in runs)
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
