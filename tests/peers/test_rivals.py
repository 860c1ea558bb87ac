"""Rivals of benchmarks/rivals.py: each does what its paper says, on a network of a few weights."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import woodbury
from woodbury.model.batchnorm import recalibrate
from woodbury.model.space import ParameterSpace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import rival_layers as layers  # noqa: E402
import rival_methods as rivals  # noqa: E402
import rival_sums as sums  # noqa: E402
from snows import their_code  # noqa: E402


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


class Network(nn.Module):
    """ResNet-20's names, one small block to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4))
        self.layer2 = nn.Sequential(Block(4))
        self.layer3 = nn.Sequential(Block(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.fixture
def dense() -> woodbury.Objective:
    torch.manual_seed(0)
    model = Network().eval()
    batches = [(torch.randn(40, 3, 6, 6), torch.arange(40) % 5)]
    recalibrate(model, batches)
    space = ParameterSpace.from_model(model, include="layer*.conv?.weight")
    return woodbury.Objective.from_model(model, batches, space=space)


def layer_problem(inputs: int, outputs: int):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)
    given = torch.randn(200, inputs, dtype=torch.float64, generator=generator) @ mixing
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator)
    return given, given.T @ given / 200, weight


def squared_error(given, weight, found) -> float:
    return float((given @ (weight - found).T).square().sum())


def on_support(given, weight, keep):
    """Least squares of each output on its own weights, by a dense solver."""
    found = torch.zeros_like(weight)
    for row, mask in enumerate(keep):
        if mask.any():
            found[row, mask] = torch.linalg.lstsq(given[:, mask], given @ weight[row]).solution
    return found


def test_admm_solves_least_squares_on_its_support():
    given, moments, weight = layer_problem(12, 5)
    found = layers.Admm(ridge=1e-12)(moments, weight @ moments, weight, 25)
    assert int((found != 0).sum()) == 25
    torch.testing.assert_close(found, on_support(given, weight, found != 0), rtol=1e-3, atol=1e-4)


def test_admm_chooses_better_than_magnitude_and_nearly_as_well_as_all_supports():
    given, moments, weight = layer_problem(8, 1)
    found = layers.Admm(ridge=1e-9)(moments, weight @ moments, weight, 4)
    supports = []
    for kept in itertools.combinations(range(8), 4):
        keep = torch.zeros(1, 8, dtype=torch.bool)
        keep[0, list(kept)] = True
        supports.append(squared_error(given, weight, on_support(given, weight, keep)))
    reached = squared_error(given, weight, found)
    by_magnitude = on_support(given, weight, layers.largest(weight, 4))
    assert reached <= squared_error(given, weight, by_magnitude) * (1 + 1e-6)
    assert sum(error < reached * (1 - 1e-6) for error in supports) <= 3  # of 70


@pytest.mark.parametrize("even", [True, False])
def test_layer_after_layer_keeps_the_count_and_comes_nearer_to_the_outputs(dense, even):
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    pruned = layers.LayerAfterLayer(layers.Admm(), even)(dense, 0.6)
    assert abs(pruned.space.d - 0.4 * dense.space.n) <= len(dense.space.shapes)
    assert distance(pruned, dense) < 0.5 * distance(rivals.Removal()(dense, 0.6), dense)
    after = dense.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_admm_takes_a_matrix_for_each_output():
    """Outputs and loss together: the minimum on the support, by a dense solver for each output."""
    _, moments, weight = layer_problem(12, 5)
    rows = torch.randn(40, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    fisher, share = torch.einsum("moi,moj->oij", rows, rows) / 40, 0.3
    matrices, goal = sums.weighted(moments, weight @ moments, fisher, weight, share)
    size = fisher.diagonal(dim1=1, dim2=2).mean() / moments.diagonal().mean()
    torch.testing.assert_close(matrices, (1 - share) * fisher + share * size * moments)
    found = layers.Admm(ridge=1e-12)(matrices, goal, weight, 25)
    assert int((found != 0).sum()) == 25
    for row, mask in enumerate(found != 0):
        kept = torch.linalg.solve(matrices[row][mask][:, mask], goal[row, mask])
        torch.testing.assert_close(found[row, mask], kept, rtol=1e-3, atol=1e-4)
    change = torch.einsum("oi,oij,oj->", weight - found, matrices, weight - found)
    least = torch.where(layers.largest(weight, 25), 0, weight)
    assert change < torch.einsum("oi,oij,oj->", least, matrices, least)


def test_the_fisher_of_outputs_is_that_of_the_rows(dense):
    rows = woodbury.estimation.gradients.gradient_rows(dense, 40).double()
    for part, own in zip(rows.split(144, dim=1), sums.fisher_blocks(dense).values(), strict=True):
        of_rows = torch.einsum("moi,moj->oij", *(2 * [part.view(40, 4, 36)])) / 40
        torch.testing.assert_close(own.double(), of_rows, rtol=1e-3, atol=1e-9)


def test_layers_with_a_share_of_the_fisher_keep_the_count_and_move_otherwise(dense):
    by_outputs = layers.LayerAfterLayer(layers.Admm(), even=True)(dense, 0.6)
    pruned = layers.LayerAfterLayer(layers.Admm(), even=True, share=0.5)(dense, 0.6)
    assert pruned.space.d == by_outputs.space.d
    assert distance(pruned, dense) < distance(rivals.Removal()(dense, 0.6), dense)
    nearly = layers.LayerAfterLayer(layers.Admm(), even=True, share=1 - 1e-6)(dense, 0.6)
    torch.testing.assert_close(full(nearly), full(by_outputs), rtol=0.05, atol=0.02)
    assert (full(pruned) - full(by_outputs)).norm() > 2 * (full(nearly) - full(by_outputs)).norm()


def full(objective) -> torch.Tensor:
    return objective.space.expand(objective.weights)


def distance(objective, dense) -> float:
    ((inputs, _),) = dense.batches
    with torch.no_grad():
        said = objective.forward(objective.parameters, inputs)
        return float((said - dense.forward(dense.parameters, inputs)).square().mean())


def test_the_weighted_sum_is_the_sum(dense):
    share, damping = 0.3, 1e-2
    fisher = rivals.WeightedSum(share, damping)(dense)
    rows = woodbury.estimation.gradients.gradient_rows(dense, 40).double()
    wanted, diagonals = [], []
    for name, part in zip(dense.space.shapes, rows.split(144, dim=1), strict=True):
        block, layer = name.split(".conv")[0], name.removesuffix(".weight")
        moments = second_moments(dense, block, layer)
        own = torch.einsum("moi,moj->oij", *(2 * [part.view(40, 4, 36)])) / 40
        size = own.diagonal(dim1=1, dim2=2).mean() / moments.diagonal().mean()
        wanted.append((1 - share) * own + share * size * moments)
        diagonals.append(wanted[-1].diagonal(dim1=1, dim2=2).flatten())
    added = damping * torch.cat(diagonals).mean()
    matrix = torch.block_diag(*torch.cat(wanted)) + added * torch.eye(dense.space.n).double()
    vector = torch.randn(dense.space.n)
    product = (fisher @ vector).double()
    torch.testing.assert_close(product, matrix @ vector.double(), rtol=1e-3, atol=1e-7)
    keep = torch.arange(dense.space.n) % 3 > 0
    smaller = dense.at(dense.weights[keep], dense.space.restrict(keep))
    assert rivals.WeightedSum(share, damping)(smaller).d == int(keep.sum())


def second_moments(dense, block: str, layer: str) -> torch.Tensor:
    """Of the patches of a convolution's inputs, at all positions."""
    seen = []
    hook = dense.model.get_submodule(layer).register_forward_hook(
        lambda module, given, output: seen.append(given[0].detach().double())
    )
    dense.model(next(iter(dense.batches))[0])
    hook.remove()
    patches = nn.functional.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    return patches.T @ patches / len(patches)


def test_the_update_of_the_weighted_sum_comes_nearer_to_the_outputs(dense):
    method = rivals.Moonshot(rivals.WeightedSum(0.5, 1e-2), first_order=False)
    pruned = method(dense, 0.5)
    assert pruned.space.d == round(0.5 * dense.space.n)
    assert distance(pruned, dense) < distance(rivals.Removal()(dense, 0.5), dense)


def test_adam_to_all_blocks_comes_nearer_and_removed_weights_are_zero(dense):
    removed = rivals.Removal()(dense, 0.5)
    pruned = rivals.AdamToBlocks(1e-2, epochs=20, batch=20)(dense, 0.5)
    assert torch.equal(pruned.space.keep, removed.space.keep)
    assert distance(pruned, dense) < 0.5 * distance(removed, dense)


def test_matched_variances_are_the_dense_ones(dense):
    pruned = layers.MatchedVariances()(dense, 0.5)
    ((inputs, _),) = dense.batches
    for name in ("layer1.0", "layer3.0"):
        for net in (first := {}, second := {}):
            model = dense.model if net is first else pruned.model
            block = model.get_submodule(name)
            hook = block.bn2.register_forward_hook(lambda m, g, o, net=net: net.update(out=o))
            with torch.no_grad():
                objective = dense if net is first else pruned
                objective.forward(objective.parameters, inputs)
            hook.remove()
        for ours, theirs in zip(
            layers.moments_of(first["out"]), layers.moments_of(second["out"]), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_batchnorm_absorbs_matched_variances(dense):
    """Recalibrated, they are the magnitude mask: which is why the two rows are equal."""
    ((inputs, _),) = dense.batches
    outputs = []
    for method in (layers.MatchedVariances(), rivals.Removal()):
        pruned = method(dense, 0.5)
        model = Network()
        model.load_state_dict(pruned.model.state_dict())
        model.load_state_dict(pruned.parameters, strict=False)
        recalibrate(model, dense.batches)
        with torch.no_grad():
            outputs.append(model.eval()(inputs))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def test_published_code_is_read_up_to_its_unfinished_function(tmp_path):
    for folder, name, text in (
        ("prune", "SNOWS.py", "from helpers import x\ndef prune_and_update():\n# nothing\n"),
        ("prune", "helpers.py", "x = 1\n"),
        ("prune", "Layer_pruner_new.py", "import timm\nfrom .SNOWS import x\n"),
        ("model", "resnet_cifar10_manual.py", "name = 'theirs'\n"),
    ):
        (tmp_path / "CNN_pruning" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "CNN_pruning" / folder / name).write_text(text)
    path, modules = list(sys.path), set(sys.modules)
    with their_code(tmp_path) as code:
        assert code.pruners.x == 1
        assert code.networks.name == "theirs"
    assert sys.path == path
    assert set(sys.modules) == modules


def test_a_folder_without_the_code_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a checkout"), their_code(tmp_path):
        pass
