"""PruningCallback in the real Trainer: resumed runs, logs, the best checkpoint, and sentences."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import woodbury
from woodbury import WoodburyError
from woodbury.estimation.engines import looped
from woodbury.estimation.layer_gradients import hooked
from woodbury.model.batches import slice_samples

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from woodbury.integrations.transformers import PruningCallback
from woodbury.integrations.transformers.callback import STATE_FILE

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
    "num_labels": 3,
}
PRUNER = woodbury.Pruner(woodbury.mfac(12, 0.1, engine=hooked))
LAYERS = {"exclude": ["*embeddings*", "*pooler*", "classifier*"]}


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    """accelerate collects garbage at each training, which takes a second with so many modules."""
    gc.freeze()
    yield
    gc.unfreeze()


def data(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, 20, (6,), generator=generator), "labels": i % 3}
        for i in range(count)
    ]


class Made:
    """A trainer with its callback."""

    def __init__(self, folder: Path, *, known: bool = True, callbacks: Any = (), **settings: Any):
        options = {
            name: settings.pop(name)
            for name in ("start", "end", "steps", "batches", "samples", "resume_from", "pruner")
            if name in settings
        }
        options = {"start": 0.2, "end": 0.8, "steps": 3, "pruner": PRUNER, **LAYERS, **options}
        defaults: dict[str, Any] = {
            "max_steps": 10,
            "save_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "report_to": [],
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "logging_steps": 100,
        }
        metrics = settings.pop("compute_metrics", None)
        arguments = TrainingArguments(str(folder), **{**defaults, **settings})
        torch.manual_seed(0)
        self.trainer = Trainer(
            BertForSequenceClassification(BertConfig(**SIZES)),
            arguments,
            train_dataset=data(),  # type: ignore[arg-type]
            eval_dataset=data(8),  # type: ignore[arg-type]
            callbacks=list(callbacks),
            compute_metrics=metrics,
        )
        self.callback = PruningCallback(0.8, self.trainer if known else None, **options)
        self.trainer.add_callback(self.callback)

    def run(self, checkpoint: Path | None = None) -> Made:
        self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self

    @property
    def weights(self) -> dict[str, Any]:
        assert self.trainer.model is not None
        return self.trainer.model.state_dict()

    @property
    def gradual(self) -> woodbury.Gradual:
        assert self.callback.gradual is not None
        return self.callback.gradual


SETTINGS: dict[str, dict[str, Any]] = {
    "steps": {},
    "epochs, accumulated, bfloat16": {
        "max_steps": -1,
        "num_train_epochs": 4,
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "pruner": woodbury.Pruner(woodbury.mfac(12, 0.1, engine=looped)),
    },
}


@pytest.mark.parametrize(
    "name", ["steps", pytest.param("epochs, accumulated, bfloat16", marks=pytest.mark.slow)]
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    """From the middle of an epoch, with dropout, between two pruning steps."""
    whole = Made(tmp_path, **SETTINGS[name]).run()
    resumed = Made(tmp_path, **SETTINGS[name]).run(tmp_path / "checkpoint-4")
    assert whole.gradual.sparsity == pytest.approx(0.8, abs=0.01)
    assert len(whole.gradual.history) == 3 and whole.gradual.history[0].step < 4
    assert whole.gradual.step == whole.trainer.state.global_step
    assert resumed.gradual.history == whole.gradual.history
    assert torch.equal(resumed.gradual.space.keep, whole.gradual.space.keep)
    for key, tensor in whole.weights.items():
        assert torch.equal(resumed.weights[key], tensor), key


@pytest.mark.slow
def test_a_training_in_float16(tmp_path: Path) -> None:
    made = Made(tmp_path, max_steps=5, fp16=True, save_strategy="no").run()
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.01) and made.gradual.step == 5


class Logger(TrainerCallback):
    """What a logger of the trainer sees, such as TensorBoard's."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append((state.global_step, dict(logs)))


def test_the_trainers_loggers_and_log_history_have_each_pruning_step(tmp_path: Path) -> None:
    logger = Logger()
    made = Made(tmp_path / "a", callbacks=[logger], save_strategy="no").run()
    expected = {done.step: done for done in made.gradual.history}
    seen = {step: logs for step, logs in logger.seen if "sparsity" in logs}
    assert seen.keys() == expected.keys()
    for step, done in expected.items():
        assert seen[step]["sparsity"] == done.sparsity
        assert seen[step]["predicted_loss"] == done.predicted

    unknown = Made(tmp_path / "b", known=False, save_strategy="no").run()
    history = [entry for entry in unknown.trainer.state.log_history if "sparsity" in entry]
    assert [entry["step"] for entry in history] == list(expected)
    assert all("loss" in entry for entry in history)


def test_the_best_checkpoint_is_one_of_the_sparsest(tmp_path: Path) -> None:
    """Also where the metric was best before anything was pruned, and few checkpoints are kept."""
    scores = iter([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])
    made = Made(
        tmp_path,
        max_steps=12,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        save_total_limit=1,
        end=7,
        compute_metrics=lambda _: {"score": next(scores)},
    ).run()
    assert made.gradual.pruning_steps[-1] == 7 and made.trainer.state.best_global_step == 10
    best = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-10").state_dict()
    assert all(torch.equal(best[key], tensor) for key, tensor in made.weights.items())
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.01)
    assert [path.name for path in tmp_path.glob(f"*/{STATE_FILE}")] == [STATE_FILE]


def test_without_training_nothing_happens(tmp_path: Path) -> None:
    made = Made(tmp_path)
    before = {key: tensor.clone() for key, tensor in made.weights.items()}
    made.trainer.predict(data(4))  # type: ignore[arg-type]
    made.trainer.evaluate()
    assert made.callback.gradual is None
    assert all(torch.equal(before[key], tensor) for key, tensor in made.weights.items())


@pytest.mark.slow
def test_a_second_training_is_one_of_its_own(tmp_path: Path) -> None:
    made = Made(tmp_path, max_steps=5, save_strategy="no").run()
    first = made.gradual
    made.run()
    assert made.gradual is not first and first.step == 5 and made.gradual.step == 5


@pytest.mark.slow
def test_a_training_that_was_moved_is_resumed_where_it_is(tmp_path: Path) -> None:
    Made(tmp_path / "a", max_steps=5).run()
    moved = (tmp_path / "a" / "checkpoint-4").rename(tmp_path / "elsewhere")
    with pytest.raises(WoodburyError, match=f"after step 4, and .* has no {STATE_FILE}: resume"):
        Made(tmp_path / "b", max_steps=5).run(moved)
    made = Made(tmp_path / "b", max_steps=5, resume_from=moved).run(moved)
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.01)
    with pytest.raises(WoodburyError, match="is of step 4 and the training goes on after step 5"):
        last = tmp_path / "a" / "checkpoint-5"
        Made(tmp_path / "b", max_steps=6, resume_from=moved).run(last)
    (moved / STATE_FILE).write_bytes(b"PK no zip")
    with pytest.raises(WoodburyError, match=f"{STATE_FILE} is damaged: resume from another"):
        Made(tmp_path / "b", max_steps=5, resume_from=moved).run(moved)


@pytest.mark.slow
def test_other_settings_are_named_when_a_training_goes_on(tmp_path: Path) -> None:
    Made(tmp_path, max_steps=5).run()
    with pytest.raises(WoodburyError, match="pruning_steps"):
        Made(tmp_path, max_steps=5, end=5).run(tmp_path / "checkpoint-4")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too late": ({"end": 11}, "after step 11, and the training has 10: give an earlier end"),
    "too many": ({"steps": 9}, "9 pruning steps do not fit from step 2 to step 8"),
    "too few samples": ({"samples": 5}, "5 of the 12 samples"),
    "percent": ({"end": 80.0}, "end is 80.0: a fraction of the training is from 0 to 1"),
    "no step": ({"start": 0}, "start is 0: it is a step of the optimizer"),
    "no number": ({"start": "soon"}, "start is 'soon'"),
    "no samples": ({"samples": 0}, "samples is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence_before_the_first_step(name: str, tmp_path: Path) -> None:
    options, sentence = REFUSED[name]
    with pytest.raises(WoodburyError, match=sentence):
        Made(tmp_path, **options).run()


def test_an_unknown_option_is_refused_at_once() -> None:
    with pytest.raises(WoodburyError, match="no option 'prunner': did you mean 'pruner'"):
        PruningCallback(0.5, prunner=PRUNER)
    with pytest.raises(WoodburyError, match="sparsity"):
        PruningCallback(1.5)


@pytest.mark.slow
def test_own_batches_and_their_likelihood(tmp_path: Path) -> None:
    samples = data(12)
    inputs = {"input_ids": torch.stack([sample["input_ids"] for sample in samples])}
    target = torch.tensor([sample["labels"] for sample in samples])
    batches = [slice_samples((inputs, target), i, i + 6) for i in (0, 6)]
    made = Made(tmp_path, max_steps=5, save_strategy="no", batches=batches).run()
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.01)


def test_a_model_whose_loss_is_not_known_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.trainer.model = made.trainer.model_wrapped = BertModel(BertConfig(**SIZES))
    made.trainer.label_names = ["labels"]
    with pytest.raises(WoodburyError, match="The loss of BertModel is not known: give likelihood"):
        made.run()
