"""woodbury prune: what it writes, and what each option does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.cli import refused, report, same_weights, succeeds, weights, woodbury
from support.limits import Limited

import woodbury as package
from woodbury.cli.options import PruningOptions
from woodbury.cli.problem import load_problem
from woodbury.estimation import engines
from woodbury.evaluation import methods
from woodbury.pruning import api
from woodbury.pruning.staged import run_stages

NET = Path(__file__).with_name("net.py")
PRUNE = "prune net.py:build net.py:both --sparsity 0.5 --count 100 --damping 1e-3 --out out"


def test_prune_writes_three_files_and_says_what_it_did(here: Path) -> None:
    result = succeeds(PRUNE)
    assert "50.00 % of 456 weights removed" in result.stdout
    assert "woodbury.load_sparse" in result.stdout
    names = ["report.html", "report.json", "run.toml", "weights.safetensors"]
    assert sorted(entry.name for entry in Path("out").iterdir()) == names
    assert "Sparsity of each parameter" in Path("out/report.html").read_text("utf-8")


def test_the_report_has_every_number(here: Path) -> None:
    succeeds(PRUNE)
    numbers = report("out")
    assert numbers["command"] == "prune" and numbers["measure"] == "accuracy"
    assert numbers["sparsity"] == 0.5 and numbers["damping"] == 1e-3
    assert numbers["measured_increase"] == pytest.approx(
        numbers["loss_after"] - numbers["loss_before"]
    )
    assert numbers["score_before"] > 0.8 and 0 <= numbers["score_after"] <= 1
    assert numbers["seconds"] > 0 and numbers["predicted_increase"] > 0
    assert numbers["peak_megabytes"] > 1
    assert {"woodbury", "torch", "python"} <= set(numbers["versions"])


def test_all_keys_of_the_report_are_snake_case(here: Path) -> None:
    succeeds(PRUNE)
    numbers = report("out")
    for keys in (numbers, numbers["settings"], *numbers["layers"]):
        assert all(key.isidentifier() and key == key.lower() for key in keys)


def test_the_settings_of_the_report_are_those_asked_for_and_decided(here: Path) -> None:
    succeeds(PRUNE)
    settings = report("out")["settings"]
    assert settings["count"] == 100 and settings["method"] == "gauss-newton"
    assert settings["stages"] == 2 and settings["mc_samples"] == 1
    assert settings["parameters"] == ["1.weight", "4.weight"] and settings["weights"] == 456


def test_the_recipe_of_the_report_has_all_fields_of_the_pruner(here: Path) -> None:
    succeeds(PRUNE, "--unit block:4 --selection iterative-greedy:3")
    recipe = report("out")["recipe"]
    assert recipe["fisher"]["count"] == 100 and recipe["fisher"]["mc_samples"] == 1
    assert recipe["unit"]["name"] == "block" and recipe["selection"]["steps"] == 3
    assert recipe["scope"] == "global_" and recipe["update"] == "joint"


def test_the_layers_of_the_report_add_up(here: Path) -> None:
    succeeds(PRUNE)
    layers = report("out")["layers"]
    written = weights("out")
    assert sum(layer["kept"] for layer in layers) == 228
    assert sum(int(written[layer["name"]].count_nonzero()) for layer in layers) == 228
    assert [layer["flops"] for layer in layers] == [2 * 384, 2 * 72]
    assert all(layer["flops_left"] == 2 * layer["kept"] for layer in layers)
    assert all(len(layer["saliencies"]) == 3 for layer in layers)


def test_the_written_weights_score_as_reported(here: Path) -> None:
    succeeds(PRUNE, "--recalibrate --method woodfisher --block 20")
    spec = importlib.util.spec_from_file_location("pruned_net", here / "net.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.build()
    model.load_state_dict(weights("out"))
    x, y = module.data(100, 1)
    score = float((model(torch.tensor(x).float()).argmax(1).numpy() == y).mean())
    assert score == pytest.approx(report("out")["score_after"])


@pytest.mark.parametrize(
    "options",
    [
        "--method magnitude",
        "--method diagonal-fisher --scope layerwise",
        "--method kfac --update independent",
        "--first-order --stages 2",
        "--method mfac --batch 2 --exclude 4.*",
        "--include 1.weight",
        "--damping 1e-4,1e-2",
        "--selection iterative-greedy:4",
        "--selection swaps:3",
        "--selection iht:3 --flops-power 0.5",
        "--max-layer-sparsity 0.8",
        "--flops-power 0.5",
        "--pattern 1:4 --include 1.weight",
        "--pattern 1:4 --method magnitude",
    ],
)
def test_every_option_prunes_exactly(options: str, here: Path) -> None:
    target = "" if "--pattern" in options else "--sparsity 0.75"
    succeeds("prune net.py:build net.py:both --count 60 --out out", target, options)
    layers = report("out")["layers"]
    removed = sum(layer["weights"] - layer["kept"] for layer in layers)
    assert removed == round(0.75 * sum(layer["weights"] for layer in layers))
    if "1e-4,1e-2" in options:
        assert report("out")["damping"] in (1e-4, 1e-2)


ONE_FISHER = "prune net.py:build net.py:both --count 100 --damping 1e-3 --stages 1 --refit 0"


def predicted(options: str) -> float:
    """The predicted increase of the loss at 75 % in one stage."""
    folder = f"out{len(list(Path().iterdir()))}"
    succeeds(ONE_FISHER, "--sparsity 0.75", options, "--out", folder)
    return report(folder)["predicted_increase"]


@pytest.mark.parametrize("selection", ["iterative-greedy:8", "swaps:3", "iht:3"])
def test_a_selection_predicts_less_than_the_greedy_one(selection: str, here: Path) -> None:
    assert predicted(f"--selection {selection}") < predicted("--selection greedy")


def test_more_swaps_predict_less(here: Path) -> None:
    assert predicted("--selection swaps:20") < predicted("--selection swaps:1")


def test_the_joint_update_predicts_less_than_the_others(here: Path) -> None:
    others = [predicted(f"--update {update}") for update in ("independent", "zero")]
    assert predicted("--update joint") < min(others)


def test_a_layerwise_scope_prunes_every_tensor_alike(here: Path) -> None:
    succeeds(ONE_FISHER, "--sparsity 0.75 --scope layerwise --out out")
    assert [layer["sparsity"] for layer in report("out")["layers"]] == [0.75, 0.75]


def test_the_largest_sparsity_of_a_tensor_is_kept(here: Path) -> None:
    largest = {}
    for limit in (1.0, 0.8):
        options = f"--sparsity 0.75 --max-layer-sparsity {limit} --out out{limit}"
        succeeds("prune net.py:build net.py:both --method magnitude", options)
        largest[limit] = max(layer["sparsity"] for layer in report(f"out{limit}")["layers"])
    assert largest[0.8] == pytest.approx(0.8, abs=1 / 72) and largest[1.0] > largest[0.8]


def test_more_ggn_samples_make_another_fisher(here: Path) -> None:
    for samples in (1, 2, 4):
        succeeds(ONE_FISHER, f"--sparsity 0.9 --mc-samples {samples} --out out{samples}")
    succeeds(ONE_FISHER, "--sparsity 0.9 --out usual")
    assert same_weights("usual", "out1")
    assert not same_weights("out1", "out2") and not same_weights("out2", "out4")


def test_targets_by_the_names_of_parameters(here: Path) -> None:
    command = "prune net.py:build net.py:both --count 60 --damping 1e-3 --out out"
    succeeds(command, "--sparsity 4.*=0,*=0.75")
    assert [layer["sparsity"] for layer in report("out")["layers"]] == [0.75, 0.0]


@pytest.mark.parametrize("options", ["--unit block:1x4", "--unit block:4 --flops"])
def test_blocks_are_removed_whole(options: str, here: Path) -> None:
    command = "prune net.py:build net.py:both --count 60 --damping 1e-3 --sparsity 0.5 --out out"
    succeeds(command, options)
    written = weights("out")
    sizes = [
        (written[layer["name"]].view(-1, 4) != 0).sum(1).tolist()
        for layer in report("out")["layers"]
    ]
    assert {size for tensor in sizes for size in tensor} == {0, 4}
    assert sum(map(sum, sizes)) == 228


@pytest.mark.parametrize(("unit", "dim"), [("channels", 1), ("rows", 1), ("columns", 0)])
def test_channels_are_removed_whole(unit: str, dim: int, here: Path) -> None:
    command = "prune net.py:build net.py:both --sparsity 0.5 --count 60 --damping 1e-3"
    succeeds(command, "--include 1.weight --unit", unit, "--out out")
    kept = (weights("out")["1.weight"] != 0).sum(dim).tolist()
    half = len(kept) // 2
    assert sorted(kept) == [0] * half + [384 // len(kept)] * half


def test_the_same_seed_gives_the_same_weights(here: Path) -> None:
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        succeeds(PRUNE.replace("--out out", f"--out {folder} --seed {seed}"))
    assert same_weights("a", "b") and not same_weights("a", "c")


def test_a_sparse_file_is_an_eighth_and_can_be_pruned_on(here: Path) -> None:
    layers = "nn.Linear(16, 3000, bias=False), nn.Linear(3000, 3)"
    Path("big.py").write_text(
        "import torch\nfrom torch import nn\n"
        f"def net():\n    torch.manual_seed(0)\n    return nn.Sequential({layers})\n"
    )
    succeeds("prune big.py:net net.py:both --sparsity 0.9 --method magnitude --out out")
    pruned = weights("out")
    save_file(pruned, "dense.safetensors")
    sparse_size = Path("out/weights.safetensors").stat().st_size
    assert 7 < Path("dense.safetensors").stat().st_size / sparse_size < 8.5
    succeeds(
        "prune big.py:net net.py:both --checkpoint out/weights.safetensors --sparsity 0.95",
        "--keep-zeros --method magnitude --out again",
    )
    later = weights("again")
    assert all(not later[name][pruned[name] == 0].any() for name in ("0.weight", "1.weight"))


def test_regression_is_scored_by_r_squared(here: Path) -> None:
    command = "prune net.py:linear net.py:regression --loss squared_error --sparsity 0.25"
    result = succeeds(command, "--count 50 --out out")
    numbers = report("out")
    assert numbers["measure"] == "r_squared" and "R² 9" in result.stdout
    # The labels are the network's own outputs + 0.1, of variance 0.3 to 0.4.
    assert numbers["score_before"] == pytest.approx(1, abs=0.05)
    assert numbers["score_after"] > 0.5


def test_answers_of_yes_or_no_and_smoothed_classes(here: Path) -> None:
    words = "prune net.py:linear net.py:answers --loss binary --sparsity 0.25 --count 50"
    succeeds(words, "--damping 1e-3 --out out")
    numbers = report("out")
    assert numbers["measure"] == "accuracy" and numbers["settings"]["loss"] == "binary"
    assert numbers["score_before"] == 1 and 0.7 < numbers["score_after"] <= 1
    words = "prune net.py:build net.py:both --loss smoothed_cross_entropy --sparsity 0.5"
    succeeds(words, "--method magnitude --out smoothed")
    # Smoothing costs: the loss of the same network is larger than without.
    succeeds(words.replace("smoothed_", ""), "--method magnitude --out plain")
    assert report("smoothed")["loss_before"] > 1.01 * report("plain")["loss_before"]


def test_whole_numbers_are_regressed_on_too(here: Path) -> None:
    command = "prune net.py:linear net.py:counts --loss squared_error --sparsity 0.5"
    succeeds(command, "--damping 1 --out out")
    assert report("out")["score_before"] < 1


@pytest.mark.parametrize(
    "method",
    [
        "magnitude",
        "diagonal-fisher",
        "hessian-diagonal",
        "woodfisher",
        "mfac",
        "kfac",
        "kfac-upper-bound",
    ],
)
def test_data_without_labels(method: str, here: Path) -> None:
    command = "prune net.py:build net.py:without_labels --labels sampled --sparsity 0.5"
    result = succeeds(command, f"--method {method} --damping 1e-2,1 --count 40 --out out")
    assert "what the dense network says stands for them" in result.stderr
    numbers = report("out")
    assert numbers["measure"] == "agreement" and numbers["settings"]["labels"] == "sampled"
    assert numbers["score_before"] == 1 and 0.3 < numbers["score_after"] <= 1


UNLABELLED = "--labels sampled --damping 1e-2 --count 40 --sparsity 0.25 --out out"


def test_labels_of_the_test_data_alone(here: Path) -> None:
    result = succeeds("prune net.py:build net.py:only_test_labels", UNLABELLED)
    assert "no labels" not in result.stderr
    assert report("out")["measure"] == "accuracy" and report("out")["score_before"] > 0.3


def test_regression_without_labels(here: Path) -> None:
    words = "prune net.py:linear net.py:regression_without_labels --loss squared_error"
    succeeds(words, UNLABELLED)
    numbers = report("out")
    assert numbers["score_before"] == pytest.approx(1) and 0.5 < numbers["score_after"] < 1


def test_sampled_labels_make_another_fisher(here: Path) -> None:
    command = "prune net.py:build net.py:both --sparsity 0.9 --damping 1e-3 --count 20"
    for labels in ("observed", "sampled", "own"):
        options = f"--method mfac --update independent --labels {labels} --out {labels}"
        succeeds(command, options)
    assert same_weights("own", "observed") and not same_weights("own", "sampled")


def test_without_options_the_command_is_the_function(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "fastest", lambda *_: engines.vmapped)  # not by a clock
    succeeds("prune net.py:build net.py:few --sparsity 0.95 --out out")
    problem = load_problem("net.py:build", "net.py:few", PruningOptions(), choosing=False)
    assert problem.count == 8, "all of the training data: no part is held out"
    pruned = package.prune(problem.model, problem.calibration_set(0), 0.95)
    ours = problem.model.state_dict()
    assert all(torch.equal(theirs, ours[name]) for name, theirs in weights("out").items())
    numbers = report("out")
    assert numbers["recipe"] == dict(pruned.settings)
    assert numbers["settings"]["stages"] == pruned.settings["stages"] == 5
    assert numbers["damping"] == pruned.steps[-1].damping
    assert numbers["predicted_increase"] == pytest.approx(pruned.predicted)


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ("", [1]),
        ("--count 5", [2]),
        ("--count 5 --damping 1e-4,1e-2 --stages 2", [1, 1, 2]),
        ("--count 5 --damping 1e-3 --stages 2 --epochs 1 --steps 1", [2]),
    ],
)
def test_everything_runs_once(
    options: str, runs: list[int], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two dampings are tried in the first stage, and then two stages are run."""
    stages: list[int] = []
    for module in (api, methods):  # by effort, and by a method of its own

        def counted(recipe: Any, objective: Any, sparsities: Any, *more: Any) -> Any:
            stages.append(len(sparsities))
            return run_stages(recipe, objective, sparsities, *more)

        monkeypatch.setattr(module, "run_stages", counted)
    succeeds("prune net.py:build net.py:few --sparsity 0.5 --out out", options)
    assert stages == runs


def test_a_memory_that_runs_out_is_a_sentence(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8192 bytes"
        )

    monkeypatch.setattr(api, "run_stages", run_out)
    words = "prune net.py:build net.py:both --sparsity 0.5 --out out"
    refused("The memory ran out where 8.20 kB more were needed", words, at_once=False)


def test_too_little_data_for_the_usual_count_is_said(here: Path) -> None:
    result = succeeds("prune net.py:build net.py:both --sparsity 0.5 --damping 1e-3 --out out")
    assert "made of 300 gradients" in result.stderr


@pytest.mark.parametrize(
    "data",
    [
        "net.py:few",
        "net.py:both --count 10",
        "net.py:without_labels --labels sampled --count 10",
    ],
)
def test_ten_samples_will_do(data: str, here: Path) -> None:
    succeeds(f"prune net.py:build {data} --sparsity 0.5 --out out")
    assert report("out")["sparsity"] == 0.5


REFIT = "prune net.py:build net.py:both --sparsity 0.8 --damping 1e-3 --count 60 --stages 2"


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("", 1),
        ("--refit 0", 0),
        ("--refit 2", 2),
        ("--method mfac", 0),
        ("--first-order", 0),
        ("--method magnitude --refit 1", 1),
    ],
)
def test_refits_follow_stages_by_default_and_as_asked(options: str, steps: int, here: Path) -> None:
    succeeds(REFIT, options, "--out out")
    numbers = report("out")
    assert numbers["settings"]["refit"] == steps
    if "magnitude" in options:  # what is left of the distance to the dense outputs
        assert numbers["predicted_increase"] > 0


def test_a_refit_lowers_the_loss(here: Path) -> None:
    succeeds(REFIT, "--mc-samples 2 --out usual")
    succeeds(REFIT, "--mc-samples 2 --refit 0 --out none")
    assert report("usual")["measured_increase"] < report("none")["measured_increase"]


@pytest.mark.parametrize(
    ("room", "refit"),
    [
        (2**33, "1 step by rows, 4 GGN samples per input"),
        (4 * 4 * 60 * 456 - 1, "1 step by rows, 3 GGN samples per input"),
        (4 * 60 * 456 - 1, "none"),
    ],
)
def test_a_refit_is_made_to_fit_or_left_out(
    room: int, refit: str, here: Path, limited: Limited
) -> None:
    limited(memory=room)
    command = "prune net.py:build net.py:both --damping 1e-3 --count 60 --sparsity 0.5 --stages 1"
    result = succeeds(command, "--out out")
    assert f"after each: {refit}" in result.stderr
    assert report("out")["settings"]["refit"] == (refit != "none")


def test_a_refit_that_was_asked_for_is_iterated_where_it_has_no_room(
    here: Path, limited: Limited
) -> None:
    limited(memory=4 * 60 * 456 - 1)
    command = "prune net.py:build net.py:both --damping 1e-3 --count 60 --sparsity 0.5 --stages 1"
    succeeds(command, "--out out")
    result = succeeds(command, "--refit 1 --out asked")
    assert "after each" not in result.stderr and report("asked")["settings"]["refit"] == 1
    # What is left of the distance to the dense network's outputs.
    assert report("asked")["predicted_increase"] < report("out")["predicted_increase"]


def test_ctrl_c_leaves_nothing(here: Path) -> None:
    result = woodbury("prune net.py:build net.py:interrupted --sparsity 0.5 --out deep/out")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("Interrupted: nothing was written.")
    assert not Path("deep").exists()


def test_rows_without_room_lie_in_the_scratch_folder(here: Path) -> None:
    """Sixty rows of 456 weights are 109 kB, of the 50 that rows may take."""
    Path("scratch").mkdir()
    command = "prune net.py:build net.py:both --sparsity 0.5 --count 60 --damping 1e-2"
    succeeds(command, "--method mfac --memory 100kB --scratch scratch --out disk")
    succeeds(command, "--method mfac --out memory")
    ours, theirs = weights("disk"), weights("memory")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
    assert not list(Path("scratch").iterdir()), "nothing is left behind"


def test_a_plan_is_told_and_nothing_is_done(here: Path) -> None:
    result = succeeds("prune net.py:build net.py:both --sparsity 0.5 --out out --plan")
    assert "samples" in result.output and "memory" in result.output
    assert not (here / "out").exists()
    refused("leave these options out", PRUNE, "--plan --method mfac")


def test_the_plan_is_kept_in_the_report(here: Path) -> None:
    result = succeeds("prune net.py:build net.py:both --sparsity 0.5 --out out")
    plan = report("out")["plan"]
    assert plan["weights"] == 456 and plan["stages"] == report("out")["settings"]["stages"]
    assert "456 weights by" in result.stderr


def test_a_pattern_leaves_out_the_layers_that_it_does_not_divide(here: Path) -> None:
    result = succeeds("prune net.py:build net.py:both --pattern 2:3 --method mfac --out out")
    sentence = "Groups of 3 do not divide the 16 weights along dimension 1 of '1.weight'"
    assert sentence in " ".join(result.stderr.split())
    settings = report("out")["settings"]
    assert settings["parameters"] == ["4.weight"] and sentence in settings["undivided"]
    assert (weights("out")["4.weight"].view(-1, 3).count_nonzero(1) == 2).all()
