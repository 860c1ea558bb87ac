"""PruningCallback in Lightning's real Trainer: resumed runs, logs and sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import woodbury
from woodbury import WoodburyError
from woodbury.estimation.layer_gradients import hooked

pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from woodbury.integrations.lightning import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and hardware
PRUNER = woodbury.Pruner(woodbury.mfac(12, 0.1, engine=hooked))


class Module(lightning.LightningModule):
    """A small classifier with dropout."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.several = optimizers
        self.automatic_optimization = optimizers == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Any:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.several > 1:
            first, _ = self.optimizers()
            first.zero_grad()
            self.manual_backward(loss)
            first.step()
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        made = [torch.optim.Adam(self.parameters(), lr=1e-2) for _ in range(self.several)]
        return made[0] if self.several == 1 else made


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 6, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(24) % 3), batch_size=4, shuffle=True)


def callback(**options: Any) -> PruningCallback:
    return PruningCallback(0.8, **{"steps": 3, "pruner": PRUNER, **options})


class Made:
    """A module that was trained with a callback."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Path | None = None,
        pruning: PruningCallback | None = None,
        module: Module | None = None,
        data: Any = None,
        **settings: Any,
    ) -> None:
        self.module = module or Module()
        self.callback = pruning or callback()
        self.trainer = lightning.Trainer(
            **{"max_epochs": 4, "logger": False, **settings},
            default_root_dir=folder,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[self.callback, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        )
        torch.manual_seed(1)
        self.trainer.fit(self.module, data or loader(), loader(), ckpt_path=checkpoint)

    @property
    def gradual(self) -> woodbury.Gradual:
        assert self.callback.gradual is not None
        return self.callback.gradual


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
            id="bfloat16, accumulated, clipped",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """From the end of an epoch, with dropout and a shuffled order, between two pruning steps."""
    whole = Made(tmp_path / "a", **settings)
    resumed = Made(tmp_path / "b", tmp_path / "a" / "epoch=1.ckpt", **settings)
    assert whole.gradual.sparsity == pytest.approx(0.8, abs=0.02)
    assert whole.gradual.step == whole.trainer.global_step
    assert whole.gradual.history[0].step < whole.gradual.step / 2 < whole.gradual.history[2].step
    assert resumed.gradual.history == whole.gradual.history
    assert torch.equal(resumed.gradual.space.keep, whole.gradual.space.keep)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor), name


def test_the_modules_own_logging_has_the_last_pruning_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    made = Made(tmp_path, logger=logger, log_every_n_steps=1)
    assert made.trainer.callback_metrics["sparsity"] == pytest.approx(0.8, abs=0.02)
    file = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    columns = file[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in file[1:]]
    logged = {int(row["step"]) + 1: float(row["sparsity"]) for row in rows if row["sparsity"]}
    for done in made.gradual.history:
        assert logged[done.step] == pytest.approx(done.sparsity)
    assert any(row["predicted_loss"] for row in rows)


def test_evaluation_alone_does_nothing_and_leaves_no_state(tmp_path: Path) -> None:
    made = Made(tmp_path, max_epochs=2)
    other = callback(steps=2, end=0.5)
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, accelerator="cpu", callbacks=[other],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(made.module, loader(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert other.gradual is None
    trainer.fit(Module(), loader())
    assert other.gradual is not None and other.gradual.step == 6


def test_one_of_several_optimizers(tmp_path: Path) -> None:
    sentence = "optimizer is None and the module has 2: give a number from 0 to 1"
    with pytest.raises(WoodburyError, match=sentence):
        Made(tmp_path, module=Module(optimizers=2))
    made = Made(
        tmp_path,
        module=Module(optimizers=2),
        pruning=callback(optimizer=0, start=1, end=5),
        max_epochs=1,
    )
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.02) and made.gradual.step == 6


def as_dicts(batch: Any) -> dict[str, Tensor]:
    inputs, labels = zip(*batch, strict=True)
    return {"x": torch.stack(inputs), "y": torch.stack(labels)}


class OfDicts(Module):
    """Trained on batches that are no pairs."""

    def training_step(self, batch: Any, index: int) -> Any:
        return super().training_step((batch["x"], batch["y"]), index)


@pytest.mark.slow
def test_batches_of_another_form(tmp_path: Path) -> None:
    data = DataLoader(loader().dataset, batch_size=4, collate_fn=as_dicts)
    with pytest.raises(WoodburyError, match=r"Batch 0 is a dict, not a pair \(inputs, target\)"):
        Made(tmp_path, module=OfDicts(), data=data)
    split = callback(split=lambda batch: (batch["x"], batch["y"]))
    made = Made(tmp_path, module=OfDicts(), data=data, pruning=split)
    assert made.gradual.sparsity == pytest.approx(0.8, abs=0.02)


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        WoodburyError, match=r"fraction 0\.1 of a training without an end: give step"
    ):
        Made(tmp_path, max_epochs=-1)
    with pytest.raises(WoodburyError, match="not a DataLoader: give batches"):
        Made(tmp_path, data=[(torch.ones(4, 6), torch.zeros(4).long())] * 3)
    with pytest.raises(WoodburyError, match="no option 'prunner': did you mean 'pruner'"):
        PruningCallback(0.5, prunner=PRUNER)
    made = Made(tmp_path, max_epochs=1)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    name = next(name for name in checkpoint["callbacks"] if "Pruning" in name)
    del checkpoint["callbacks"][name]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    with pytest.raises(WoodburyError, match="after step 6, and its checkpoint has no state of"):
        Made(tmp_path, tmp_path / "without.ckpt", pruning=callback(end=0.9))
    assert made.gradual.step == 6
