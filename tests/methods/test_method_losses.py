"""Each paper's loss against a loop over its equation, or a case that can be done by hand."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from small_methods import LABELS, small, views_of
from torch import Tensor

from crlf.errors import InputError
from crlf.methods import METHODS, base
from crlf.methods.barlow import barlow_twins
from crlf.methods.base import cosine, loss_of, over_pairs, spread, unit
from crlf.methods.byol import byol
from crlf.methods.dcl import dcl
from crlf.methods.dino import cross_entropy, sharpened
from crlf.methods.mocov2 import moco
from crlf.methods.mocov3 import ctr
from crlf.methods.nnclr import nearest, nnclr
from crlf.methods.simsiam import negative_cosine
from crlf.methods.supcon import sup_con
from crlf.methods.swav import sinkhorn, swapped_prediction
from crlf.methods.vicreg import VICRegSettings, vicreg_terms


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cos(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def near(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# What they share.


def test_pairs_are_all_ordered_pairs_of_different_views():
    a, b = draw(4), draw(4, seed=1)
    expected = mean([(a[i] * b[j] ** 2).item() for i in range(4) for j in range(4) if i != j])
    assert near(over_pairs(lambda x, y: x * y**2, a, b), expected)


def test_cosine_and_unit_against_a_loop():
    a, b = draw(2, 3, 4), draw(5, 4, seed=1)
    for v, i, j in [(v, i, j) for v in range(2) for i in range(3) for j in range(5)]:
        assert near(cosine(a, b)[v, i, j], cos(a[v, i], b[j]))
    torch.testing.assert_close(unit(a).norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype: torch.dtype):
    z = draw(6, 16).to(dtype)
    exact = cosine(z.double(), z.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine(z, z)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # so that autocast would have shown
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 1e-6


def test_spread_is_0_when_all_are_equal_and_1_when_they_point_everywhere():
    assert spread(draw(1, 8).expand(100, 8)).item() < 1e-6
    assert spread(draw(5, 1000, 16)).item() == pytest.approx(1, abs=0.01)
    line = torch.cat([draw(1, 16).expand(50, 16), -draw(1, 16).expand(50, 16)])
    assert spread(10 * line) == pytest.approx(spread(line).item())


# Contrastive ones.


def dcl_loop(z: Tensor, temperature: float) -> float:
    V, B, _ = z.shape
    terms = []
    for i, a, b in [(i, a, b) for i in range(B) for a, b in permutations(range(V), 2)]:
        negatives = sum(
            math.exp(cos(z[a, i], z[v, j]) / temperature) for v in range(V) for j in range(B) if j != i
        )  # equation 6: the positive is not in this sum
        terms.append(-cos(z[a, i], z[b, i]) / temperature + math.log(negatives))
    return mean(terms)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_dcl_equals_a_loop(views: int, temperature: float):
    assert near(dcl(draw(views, 5, 6), temperature), dcl_loop(draw(views, 5, 6), temperature))


def test_dcl_some_rows_at_a_time_equals_all_at_once(monkeypatch):
    z = draw(3, 7, 4).requires_grad_()
    expected = dcl(z, 0.2)
    (gradient,) = torch.autograd.grad(expected, z)
    monkeypatch.setattr(base, "LOGITS", 100)
    loss = dcl(z, 0.2)
    assert near(loss, expected.item())
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], gradient, rtol=1e-9, atol=1e-12)


def test_dcl_at_chance_and_with_one_image():
    assert near(dcl(torch.ones(3, 5, 2).double(), 0.3), math.log(3 * 4))
    with pytest.raises(InputError, match="at least 2 images"):
        dcl(torch.ones(2, 1, 4), 0.5)


def test_moco_equals_a_loop():
    q, k, queue = draw(4, 6), draw(4, 6, seed=1), draw(9, 6, seed=2)
    terms = []
    for i in range(4):
        right = math.exp(cos(q[i], k[i]) / 0.3)
        terms.append(-math.log(right / (right + sum(math.exp(cos(q[i], row) / 0.3) for row in queue))))
    assert near(moco(q, k, queue, 0.3), mean(terms))
    same = torch.ones(9, 2).double()
    assert near(moco(same[:4], same[:4], same, 0.3), math.log(10))


def test_mocov2_reads_the_queue_before_it_fills_it():
    method, views = small("mocov2"), views_of(3)
    before = method.queue.rows
    loss, _ = method(views)
    q = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    k = small("mocov2").target(views)
    expected = mean([moco(q[i], k[j], before, 0.1).item() for i, j in permutations(range(3), 2)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(method.queue.rows, unit(k.flatten(0, 1))[:20])  # of 24 keys and 20 places


def test_mocov3_equals_a_loop():
    q, k = draw(5, 6), draw(5, 6, seed=1)
    terms = []
    for i in range(5):
        others = [math.exp(cos(q[i], k[j]) / 0.4) for j in range(5)]
        terms.append(-math.log(others[i] / sum(others)))
    assert near(ctr(q, k, 0.4), 2 * 0.4 * mean(terms))


def test_nnclrs_neighbours_and_loss_equal_a_loop():
    z, support, p = draw(5, 6), draw(11, 6, seed=1), draw(5, 6, seed=2)
    chosen = [max(range(11), key=lambda k, i=i: cos(z[i], support[k])) for i in range(5)]
    assert len(set(chosen)) > 1
    neighbours = nearest(z, support)
    assert torch.equal(neighbours, support[chosen])
    terms = []
    for i in range(5):
        others = [math.exp(cos(support[chosen[i]], p[j]) / 0.2) for j in range(5)]
        terms.append(-math.log(others[i] / sum(others)))
    assert near(nnclr(neighbours, p, 0.2), mean(terms))


def test_nnclr_looks_among_earlier_images_and_queues_the_first_view():
    method, views = small("nnclr"), views_of(2)
    before = method.queue.rows
    loss, _ = method(views)
    again = small("nnclr")
    z = again.projector(again.encoder(torch.cat(views)))
    p = again.predictor(z).unflatten(0, (2, 8))
    n = nearest(z, before).unflatten(0, (2, 8))
    assert loss.item() == pytest.approx((nnclr(n[0], p[1], 0.1) + nnclr(n[1], p[0], 0.1)).item() / 2, rel=1e-5)
    torch.testing.assert_close(method.queue.rows, torch.cat([unit(z[:8]), before[:12]]))


def sup_con_loop(z: Tensor, labels: list[int], temperature: float) -> float:
    V, B, _ = z.shape
    everyone = [(v, i) for v in range(V) for i in range(B)]
    terms = []
    for a in everyone:
        total = sum(math.exp(cos(z[a], z[b]) / temperature) for b in everyone if b != a)
        positives = [b for b in everyone if b != a and labels[b[1]] == labels[a[1]]]
        terms.append(-mean([math.log(math.exp(cos(z[a], z[p]) / temperature) / total) for p in positives]))
    return mean(terms)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0] * 6])
@pytest.mark.parametrize("views", [2, 3])
def test_supcon_equals_a_loop(views: int, labels: list[int]):
    z = draw(views, 6, 5)
    assert near(sup_con(z, torch.tensor(labels), 0.3), sup_con_loop(z, labels, 0.3))


def test_supcons_gradient_is_finite_and_checks():
    z = draw(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sup_con(z, torch.tensor([0, 1, 0]), 0.5), z)


# Two networks, no negatives.


def test_byol_equals_a_loop_and_is_2_less_2_cosines():
    q, z = draw(5, 6), draw(5, 6, seed=1)
    assert near(byol(q, z), mean([2 - 2 * cos(a, b) for a, b in zip(q, z, strict=True)]))
    assert near(byol(q, 7 * q), 0) and near(byol(q, -q), 4)


def test_simsiam_equals_a_loop_and_holds_the_projection_still():
    p, z = draw(5, 6).requires_grad_(), draw(5, 6, seed=1).requires_grad_()
    loss = negative_cosine(p, z)
    assert near(loss, -mean([cos(a, b) for a, b in zip(p, z, strict=True)]))
    loss.backward()
    assert z.grad is None and p.grad is not None


@pytest.mark.parametrize("name, loss", [("byol", byol), ("simsiam", negative_cosine)])
def test_their_views_are_compared_with_every_other(name: str, loss):
    method, views = small(name), views_of(3)
    z = method.projector(method.encoder(torch.cat(views)))
    p = method.predictor(z).unflatten(0, (3, 8))
    z = method.target(views) if name == "byol" else z.unflatten(0, (3, 8))
    expected = mean([loss(p[i], z[j]).item() for i, j in permutations(range(3), 2)])
    found, stats = method(views)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert 0 < stats["spread"] < 1.1


# Covariances.


def orthogonal_features(batch: int, width: int) -> Tensor:
    """Features of mean 0 and variance 1 that do not correlate: columns of a Fourier matrix."""
    t = torch.arange(batch, dtype=torch.float64)[:, None] + 0.5
    return math.sqrt(2) * torch.cos(math.pi * t * torch.arange(1, width + 1) / batch)


def test_barlow_on_orthogonal_features():
    """The correlation matrix is then known: identity, minus it, or a permutation of it."""
    z = orthogonal_features(64, 5)
    near_1 = 1 / (1 + 1e-5)  # the epsilon beside the variance
    assert barlow_twins(z, 3 * z + 7, 0.005).item() == pytest.approx(0, abs=1e-9)
    assert barlow_twins(z, -z, 0.005).item() == pytest.approx(5 * (1 + near_1) ** 2, rel=1e-9)
    shifted = z.roll(1, dims=1)  # every feature correlates with another alone
    assert barlow_twins(z, shifted, 0.005).item() == pytest.approx(5 + 0.005 * 5 * near_1**2, rel=1e-9)


def test_barlow_equals_a_loop():
    z1, z2 = draw(7, 3), draw(7, 3, seed=1)
    loss = 0.0
    for i in range(3):
        for j in range(3):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = (a @ b / math.sqrt(float(a @ a) * float(b @ b))).item()
            loss += (1 - c) ** 2 if i == j else 0.02 * c**2
    assert barlow_twins(z1, z2, 0.02).item() == pytest.approx(loss, rel=1e-4)


def test_barlow_takes_each_pair_of_views():
    method, views = small("barlow"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    expected = mean([barlow_twins(z[i], z[j], 0.005).item() for i, j in combinations(range(3), 2)])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_vicregs_terms_by_hand():
    """Two views of three images and two features."""
    a = torch.tensor([[0.0, 0.0], [0.3, 0.6], [0.6, 0.0]], dtype=torch.float64)
    b = a + torch.tensor([1.0, 0.0])
    invariance, variance, covariance = vicreg_terms(torch.stack([a, b]))
    assert near(invariance, 0.5)  # one feature of two differs, by 1
    hinges = [1 - math.sqrt(0.09 + 1e-4), 1 - math.sqrt(0.12 + 1e-4)]  # variances 0.09 and 0.12, over B - 1
    assert near(variance, 2 * mean(hinges))
    assert near(covariance, 0)
    skewed = torch.stack([a, a])
    skewed[0, :, 1] = a[:, 0]  # in one view the second feature repeats the first: covariance 0.09, twice
    assert near(vicreg_terms(skewed)[2], 2 * 0.09**2 / 2)


@pytest.mark.parametrize("views", [2, 4])
def test_vicreg_is_the_mean_of_the_papers_over_all_pairs(views: int):
    z = draw(views, 6, 3)
    terms = [[], [], []]
    for a, b in permutations(z, 2):
        terms[0].append(mean([((p - q) ** 2).mean().item() for p, q in zip(a, b, strict=True)]))
        terms[1].append(sum(F.relu(1 - (v.var(dim=0) + 1e-4).sqrt()).mean().item() for v in (a, b)))
        off = ~torch.eye(3, dtype=torch.bool)
        terms[2].append(sum(torch.cov(v.T)[off].square().sum().item() / 3 for v in (a, b)))
    for found, expected in zip(vicreg_terms(z), terms, strict=True):
        assert near(found, mean(expected))


def test_vicreg_weighs_its_terms():
    views = views_of()
    loss, stats = small("vicreg", invariance=3.0, variance=5.0, covariance=7.0)(views)
    terms = [stats[n] for n in ("invariance", "variance", "covariance")]
    assert loss.item() == pytest.approx(3 * terms[0].item() + 5 * terms[1].item() + 7 * terms[2].item(), rel=1e-5)
    s = VICRegSettings()
    assert (s.invariance, s.variance, s.covariance) == (25, 25, 1)


# Clusters.


def test_sinkhorns_rows_and_columns():
    scores = draw(12, 5).clamp(-1, 1)
    codes = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(12, dtype=torch.float64))
    columns = [(sinkhorn(scores, 0.05, n).sum(dim=0) - 12 / 5).abs().max().item() for n in (1, 3, 30, 3000)]
    assert columns[0] > columns[1] > columns[2] > columns[3] and columns[3] < 1e-3


def test_sinkhorn_equals_the_papers_on_the_exponentials():
    scores = draw(6, 4)
    codes = (scores / 0.5).exp()
    for _ in range(3):
        codes = codes / codes.sum(dim=0, keepdim=True) / 4
        codes = codes / codes.sum(dim=1, keepdim=True) / 6
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3), 6 * codes)


def test_sinkhorn_parts_what_softmax_would_put_into_one_cluster():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.7, 0.6], [0.6, 0.5]])
    assert scores.argmax(dim=1).tolist() == [0, 0, 0, 0]
    assert sinkhorn(scores, 0.05, 10).argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert sinkhorn(1000 * scores, 0.001, 3).isfinite().all()


def test_sinkhorn_gives_no_gradient():
    assert not sinkhorn(draw(4, 3).requires_grad_(), 0.05, 3).requires_grad


@pytest.mark.parametrize("loss", [swapped_prediction, cross_entropy])
def test_cross_entropies_equal_a_loop(loss):
    scores, target = draw(4, 3), draw(4, 3, seed=1).softmax(dim=1)
    terms = []
    for s, t in zip((scores / 0.2).tolist(), target.tolist(), strict=True):
        total = sum(map(math.exp, s))
        terms.append(-sum(p * math.log(math.exp(x) / total) for p, x in zip(t, s, strict=True)))
    assert near(loss(scores, target, 0.2), mean(terms))


def test_swav_swaps():
    method, views = small("swav"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    scores = [unit(view) @ unit(method.prototypes).T for view in z]
    codes = [sinkhorn(s, 0.05, 3) for s in scores]
    expected = mean([swapped_prediction(scores[i], codes[j], 0.1).item() for i, j in permutations(range(3), 2)])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_dino_centres_and_sharpens():
    teacher, centre = draw(5, 4), draw(4, seed=1)
    for row, out in zip(teacher, sharpened(teacher, centre, 0.3), strict=True):
        weights = [math.exp((t - c) / 0.3) for t, c in zip(row.tolist(), centre.tolist(), strict=True)]
        assert out.tolist() == pytest.approx([w / sum(weights) for w in weights])
    same = draw(1, 4).expand(5, 4)  # a teacher that says the same of all: its centre takes that away
    torch.testing.assert_close(sharpened(same, same[0], 0.01), torch.full((5, 4), 0.25, dtype=torch.float64))


def test_dinos_centre_is_the_running_mean_and_comes_a_step_late():
    method = small("dino", centre_momentum=0.75)
    expected = torch.zeros(12)
    for seed in range(3):
        views = views_of(seed=seed)
        held = {key: value.clone() for key, value in method.target.state_dict().items()}
        teacher = method.target(views)  # (V, B, M)
        method.target.load_state_dict(held)
        student = method.prototypes(method.projector(method.encoder(torch.cat(views)))).unflatten(0, (2, 8))
        targets = sharpened(teacher, expected, 0.04)
        loss = mean([cross_entropy(student[i], targets[1 - i], 0.1).item() for i in range(2)])
        assert method(views)[0].item() == pytest.approx(loss, rel=1e-4)
        expected = 0.75 * expected + 0.25 * teacher.mean(dim=(0, 1))
        torch.testing.assert_close(method.centre, expected)


@pytest.mark.parametrize("name", METHODS)
def test_the_wrong_pairs_cost_more(name: str):
    """After a little training the loss of views whose rows are out of step is higher: it compares image by image."""
    method = small(name)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    for step in range(30):
        loss_of(method, views_of(seed=step % 3), LABELS)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.0)
    method.eval()
    a, b = views_of()
    order = torch.tensor([1, 2, 0, 4, 5, 3, 7, 6])  # every image elsewhere, and of another class than before
    assert (LABELS[order] != LABELS).all()
    with torch.no_grad():
        right, wrong = (loss_of(method, views, LABELS)[0].item() for views in ([a, b], [a, b[order]]))
    assert wrong > right + 0.02 * abs(right)
