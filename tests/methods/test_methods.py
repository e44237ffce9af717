"""The contract of every method in the table: gradients, targets, state, precision, settings, labels."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from small_methods import EVERY, LABELS, narrow, small, views_of
from torch import Tensor, nn

import crlf
from crlf import cli, data, encoders
from crlf.augmentation import ViewSettings
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import IndexedMethod, Method, Queue, SupervisedMethod, Target, compare, loss_of, mlp
from crlf.methods.supcon import SupCon
from crlf.optim import OPTIMIZERS, OptimSettings
from crlf.recipe import RECIPES, Recipe
from crlf.runtime.sharing import Share
from crlf.visualization.report.verdict import how_long

HERE = Path(__file__).parent


@EVERY
def test_its_class_says_what_pages_and_figures_ask(name: str):
    kind = METHODS[name]
    assert kind.title and kind.gist and kind.needs
    words = re.fullmatch(r"(\S.*) (?:19|20)\d\d, (https://\S+)", kind.paper)
    assert words, f"{name}: paper must be 'AUTHORS YEAR, ADDRESS', not {kind.paper!r}"
    assert words[2] in (inspect.getmodule(kind).__doc__ or ""), "the docstring of its file cites it"


@EVERY
def test_its_loss_has_a_reference(name: str):
    """In a test file of its own, which takes the loss from the method's file."""
    path = HERE / f"test_{name}.py"
    assert path.is_file(), f"method {name!r} has no reference: tests/methods/{path.name} must say why its loss is right"
    text = path.read_text(encoding="utf-8")
    assert f"from crlf.methods.{name} import" in text and "\ndef test_" in text


def targets(method: Method) -> dict[str, Target]:
    return {name: module for name, module in method.named_modules() if isinstance(module, Target)}


@EVERY
@pytest.mark.parametrize("views", [2, 3])
def test_gradient_reaches_every_trainable_weight_and_no_other(name: str, views: int):
    method = small(name)
    loss, stats = loss_of(method, views_of(views), LABELS)
    assert loss.shape == () and loss.isfinite() and loss.dtype == torch.float32
    assert all(value.shape == () and not value.requires_grad for value in stats.values())
    loss.backward()
    norms = {n: p.grad.norm() for n, p in method.named_parameters() if p.grad is not None}
    for n, p in method.named_parameters():
        if p.requires_grad:  # one that the loss or a batch norm undoes would get rounding alone
            assert norms[n] > 1e-5 * max(norms.values()), n
    assert set(norms) == {n for n, p in method.named_parameters() if p.requires_grad}
    assert not any(buffer.requires_grad for buffer in method.buffers())


@EVERY
def test_what_follows_is_frozen_and_no_optimizer_holds_it(name: str):
    method = small(name)
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {f"{place}.{n}" for place, target in targets(method).items() for n, _ in target.named_parameters()}
    for optimizer in OPTIMIZERS:
        made = OPTIMIZERS[optimizer](list(method.named_parameters()), OptimSettings(optimizer=optimizer))
        held = {id(p) for o in made for group in o.param_groups for p in group["params"]}
        assert held == {id(p) for p in method.parameters() if p.requires_grad}


@EVERY
def test_the_target_moves_after_a_step_and_not_before(name: str):
    method = small(name)
    following = [p for target in targets(method).values() for p in target.parameters()]
    before = [p.clone() for p in following]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    loss_of(method, views_of(), LABELS)[0].backward()
    optimizer.step()
    assert all(map(torch.equal, before, following))
    method.after_step(0.0)
    assert not any(map(torch.equal, before, following))


class Training:
    """A method and its optimizer on views that depend on the step alone."""

    def __init__(self, name: str, seed: int):
        self.method, self.step = small(name, seed), 0
        self.optimizer = torch.optim.SGD([p for p in self.method.parameters() if p.requires_grad], 0.05, momentum=0.9)

    def advance(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss, _ = loss_of(self.method, views_of(seed=self.step), LABELS)
            losses.append(loss.item())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.method.after_step(self.step / 8)
        return losses


@EVERY
def test_a_state_dict_holds_all_that_resuming_needs(name: str):
    one, file = Training(name, seed=0), io.BytesIO()
    one.advance(3)
    torch.save([one.method.state_dict(), one.optimizer.state_dict()], file)
    file.seek(0)
    other = Training(name, seed=1)
    method_state, optimizer_state = torch.load(file, weights_only=True)
    other.method.load_state_dict(method_state)
    other.optimizer.load_state_dict(optimizer_state)
    other.step = 3
    assert one.advance(3) == other.advance(3)
    ours, theirs = one.method.state_dict(), other.method.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@EVERY
def test_the_seed_decides_the_start(name: str):
    first, again, other = (small(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [
        key for key in first if key.endswith(("prototypes", "rows", "classifier.weight")) or "projector.0.weight" in key
    ]
    assert drawn and not any(torch.equal(first[key], other[key]) for key in drawn)


@EVERY
def test_a_few_steps_lower_the_loss_on_a_fixed_batch(name: str):
    """With all buffers held still: else the batch's own keys would fill a queue, and a centre move."""
    method = small(name, **{"label_smoothing": 0.1} if name == "diet" else {})  # else chance is near the least there is
    start = {key: value.clone() for key, value in method.named_buffers()}
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss, _ = loss_of(method, views_of(), LABELS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept = method.state_dict()
        method.load_state_dict({**kept, **{key: value for key, value in start.items() if key in kept}})
    assert losses[-1] < losses[0] - 0.05 * abs(losses[0])


@EVERY
def test_the_wrong_pairs_cost_more(name: str):
    """After a little training the loss of views whose rows are out of step is higher: it compares image by image."""
    method = small(name, **{"shape": 0.1} if name == "visreg" else {})  # 8 images look less spread than a normal one
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


@EVERY
def test_bf16_autocast_is_finite_and_near_float32(name: str):
    expected = loss_of(small(name), views_of(), LABELS)[0].item()
    method = small(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss, stats = loss_of(method, views_of(), LABELS)
    loss.backward()
    near = pytest.approx(expected, rel=0.1, abs=0.15)  # a cosine is off by up to 0.01, and logits are ten cosines
    assert loss.dtype == torch.float32 and loss.item() == near
    assert all(value.isfinite() for value in stats.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in method.state_dict().values())


@EVERY
def test_in_evaluation_mode_nothing_changes(name: str):
    method = small(name)
    loss_of(method, views_of(), LABELS)  # so that batch norm has statistics
    before = {key: value.clone() for key, value in method.state_dict().items()}
    loss_of(method.eval(), views_of(seed=1), LABELS)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


@EVERY
def test_batch_norm_sees_all_views_at_once(name: str):
    method, seen = small(name), []
    norm = next(m for m in method.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    loss_of(method, views_of(4), LABELS)
    assert seen == [4 * 8]


@pytest.mark.parametrize(
    "name, field",
    [
        (name, field.name)
        for name in METHODS
        for field in dataclasses.fields(METHODS[name].Settings)
        if not isinstance(field.default, str)
    ],
)
def test_wrong_settings_name_themselves(name: str, field: str):
    for value in (-1, float("nan")):
        with pytest.raises(InputError, match=rf"^{field} must be in \S+\.\.\S+, not {value}$"):
            METHODS[name].Settings(**{field: value})


@EVERY
def test_settings_are_flags_and_survive_json(name: str):
    found = []

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found.append(recipe)

    fields = dataclasses.fields(METHODS[name].Settings)
    words = {"teacher": "timm:test_resnet", "agree": "both", "projector_norms": "none"}
    numbers = {f.name: f.default for f in fields if f.name not in words}
    other = {key: value + 1 if isinstance(value, int) else value / 2 for key, value in numbers.items()}
    other |= {f.name: words[f.name] for f in fields if f.name in words}
    flags = [text for n, value in other.items() for text in (f"--{n.replace('_', '-')}", str(value))]
    assert cli.command_line(stage, ["--method", name, *flags], "stage") == 0
    assert found[0].head == METHODS[name].Settings(**other)
    assert Recipe.from_dict(found[0].to_dict()) == found[0]


def test_the_settings_of_another_method_are_refused():
    with pytest.raises(InputError, match="head must be a BYOLSettings or None for method 'byol', not a SimCLRSettings"):
        dataclasses.replace(RECIPES["default"], method="byol")


@EVERY
def test_only_a_supervised_method_can_be_given_labels(name: str):
    supervised = issubclass(METHODS[name], SupervisedMethod)
    assert ("labels" in inspect.signature(METHODS[name].loss).parameters) == supervised
    assert list(inspect.signature(METHODS[name].project).parameters) == ["self", "views"]
    told = issubclass(METHODS[name], IndexedMethod)  # which images are there, and no label
    assert ("rows" in inspect.signature(METHODS[name].loss).parameters) == told
    if not supervised and not told:
        other = loss_of(small(name), views_of(), torch.zeros_like(LABELS))[0]
        assert torch.equal(other, loss_of(small(name), views_of(), None)[0])


TINY = {"data": "shapes", "subset": 128, "batch_size": 64, "views": 2, "epochs": 1}


def test_the_loop_gives_labels_to_supervised_methods_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "crlf.training.gradients.compare",
        lambda m, z, labels, share: seen.append(labels) or compare(m, z, labels, share),
    )
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    for name in ("byol", "supcon", "diet"):
        run = crlf.pretrain(Recipe(method=name, head=narrow(name), **TINY), out=tmp_path / name, device="cpu")
        assert run.scores["supervised"] == (name == "supcon")
        assert how_long(run.scores).startswith(f"It learned {'with' if name == 'supcon' else 'without'} labels")
    labels = data.load("shapes")[0].labels[:128]
    assert seen[:2] == [None, None]
    assert torch.equal(torch.cat(seen[2:4]).sort().values, labels.sort().values)
    assert torch.cat(seen[4:6]).sort().values.tolist() == list(range(128))  # rows


def test_a_batchs_labels_are_those_of_its_images(tmp_path, monkeypatch):
    """Images that are their label's grey level: after any view without colour changes they still say which they are."""
    labels = torch.arange(64)
    images = (4 * labels)[:, None, None, None].expand(64, 3, 16, 16).to(torch.uint8).contiguous()
    grey = data.ImageSet(images, labels, tuple(map(str, range(64))), tuple(map(str, range(64))))
    monkeypatch.setitem(data.SOURCES, "grey", lambda data_dir: (grey, grey))
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    seen, project = [], SupCon.project

    def note(method: SupCon, views: list[Tensor]):
        seen.append([[view.mean(dim=(1, 2, 3))] for view in views])
        return project(method, views)

    def note_labels(method: Method, projections: list[Tensor], given: Tensor, share: Share):
        for pair in seen[-1]:
            pair.append(given)
        return compare(method, projections, given, share)

    monkeypatch.setattr(SupCon, "project", note)
    monkeypatch.setattr("crlf.training.gradients.compare", note_labels)
    plain = ViewSettings(jitter=0, grayscale=0)
    recipe = Recipe(method="supcon", data="grey", batch_size=16, views=2, epochs=1, augmentation=plain)
    crlf.pretrain(recipe, out=tmp_path, device="cpu")
    seen = [step for step in seen if len(step[0]) == 2]  # the count of operations has no labels
    assert len(seen) == 4
    for mean, given in (pair for step in seen for pair in step):
        assert torch.equal(mean.argsort(), given.argsort())


def test_a_supervised_method_needs_labels_before_anything_is_written(tmp_path, monkeypatch):
    train, test = data.load("shapes")
    blind = data.ImageSet(train.images, None, (), train.ids)
    monkeypatch.setitem(data.SOURCES, "shapes", lambda data_dir: (blind, test))
    with pytest.raises(InputError, match="method 'supcon' learns from labels, but the data set 'shapes' has none"):
        crlf.pretrain(Recipe(method="supcon", **TINY), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_docs_say_what_a_head_costs():
    """Multiply-adds of its linear layers for the default encoder."""
    text = (HERE.parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"`(\w+)` (\d+\.\d)\b", text[text.index("The published heads") :].partition(";")[0]))
    assert len(told) == 7
    for name, millions in told.items():
        method = METHODS[name](encoders.build("cnn", 3, 32), METHODS[name].Settings())
        parts = [part for part in method.children() if part is not method.encoder and not isinstance(part, Target)]
        layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
        assert f"{sum(layer.weight.numel() for layer in layers) / 1e6:.1f}" == millions, name


def test_the_target_is_the_average_of_the_weights_in_closed_form():
    """Constant momentum m: after n steps m^n t_0 + (1 - m) sum_k m^(n - k) w_k."""
    online = nn.Linear(3, 2)
    target = Target(online, start=0.9, end=0.9)
    expected = 0.9**6 * online.weight.detach()
    for k in range(1, 7):
        nn.init.normal_(online.weight, generator=torch.Generator().manual_seed(k))
        expected = expected + 0.1 * 0.9 ** (6 - k) * online.weight.detach()
        target.follow(online, progress=k / 6)
    torch.testing.assert_close(target.networks[0].weight, expected)


def test_the_targets_momentum_rises_along_a_cosine():
    online = nn.Linear(1, 1)
    nn.init.zeros_(online.weight)
    kept = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        target = Target(online, start=0.9, end=1.0)
        nn.init.ones_(target.networks[0].weight)
        target.follow(online, progress=progress)
        kept.append(target.networks[0].weight.item())
    assert kept == pytest.approx([0.9, 1 - 0.1 * (2**-0.5 + 1) / 2, 0.95, 1.0])


def test_a_target_gives_each_view_of_the_networks_it_copies():
    online = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    target = Target(online, start=1.0, end=1.0)
    views = list(torch.randn(3, 5, 3, 2, 2))
    assert torch.equal(target(views), torch.stack([online(view) for view in views]).detach())
    assert not target(views).requires_grad


def numbered(*values: int) -> Tensor:
    """Directions that tell which row they are: (cos a, sin a)."""
    angle = torch.tensor(values) / 100
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_a_queue_keeps_the_last_rows_newest_first():
    queue = Queue(5, 2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5))
    held = queue.rows
    queue.push(3 * numbered(1, 2))  # made of length 1
    assert queue.rows.shape == (5, 2)
    torch.testing.assert_close(queue.rows, torch.cat([numbered(1, 2), held[:3]]))
    queue.push(numbered(3, 4))
    queue.push(numbered(5, 6))  # now the first row has left, after 6 of 5
    torch.testing.assert_close(queue.rows, numbered(5, 6, 3, 4, 1))
    queue.push(numbered(*range(10, 17)))  # more than fit
    torch.testing.assert_close(queue.rows, numbered(10, 11, 12, 13, 14))


def test_a_push_leaves_the_old_rows_for_the_backward_pass():
    queue, q = Queue(4, 2), torch.randn(3, 2, requires_grad=True)
    rows = queue.rows
    loss = (q @ rows.T).exp().sum()
    queue.push(numbered(1, 2, 3))
    loss.backward()
    expected = (q.detach() @ rows.T).exp() @ rows
    torch.testing.assert_close(q.grad, expected)


def test_mlps_layers():
    def kinds(network: nn.Sequential) -> list[str]:
        return [type(layer).__name__ for layer in network]

    assert kinds(mlp([8, 6, 4])) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(mlp([8, 6, 4], norm=False)) == ["Linear", "ReLU", "Linear"]
    last = mlp([8, 6, 5, 4], activation=nn.GELU, last_norm=True)
    assert kinds(last) == [*["Linear", "BatchNorm1d", "GELU"] * 2, "Linear", "BatchNorm1d"]
    assert last[-2].bias is None and not last[-1].affine
    assert mlp([8, 4])[0].bias is not None and mlp([8, 4], bias=False)[0].bias is None
