"""What the trainers' own TensorBoard loggers write of a pruning, read back from event files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="tensorboard is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")
pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from integrations import test_trainer_of_lightning as of_lightning
from integrations import test_trainer_of_transformers as of_transformers
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from woodbury.training.gradual import Gradual

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice, tensorboard's own


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What the event files in a folder hold: tag -> step -> value."""
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in tags}


def check(written: dict[str, dict[int, float]], gradual: Gradual, prefix: str, shift: int) -> None:
    """Each pruning step is in the files, at its optimizer step, with its two numbers."""
    assert len(gradual.history) == 3
    for done in gradual.history:
        at = done.step - shift
        assert written[f"{prefix}sparsity"][at] == pytest.approx(done.sparsity)
        assert done.predicted is not None
        assert written[f"{prefix}predicted_loss"][at] == pytest.approx(done.predicted)
    assert max(written[f"{prefix}sparsity"].values()) == pytest.approx(0.8, abs=0.02)


def test_the_trainer_of_transformers_writes_each_pruning_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    settings = {"report_to": ["tensorboard"], "save_strategy": "no"}
    made = of_transformers.Made(tmp_path / "run", **settings).run()
    check(scalars(tmp_path / "events"), made.gradual, "train/", 0)


def test_lightnings_logger_writes_each_pruning_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    made = of_lightning.Made(tmp_path, logger=logger, log_every_n_steps=1)
    logger.experiment.flush()
    check(scalars(Path(logger.log_dir)), made.gradual, "", 1)  # Lightning counts from 0
