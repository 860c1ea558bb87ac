"""The options of all commands: each is declared once, in a dataclass that is a group of the help.

The help of an option is its entry in the docstring of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from woodbury.cli.names import LabelsName, LossName, MethodName, ScopeName, TaskName, UpdateName
from woodbury.cli.optimizers import FineTunerName, OptimizerName
from woodbury.errors import WoodburyError
from woodbury.memory.budget import parse_bytes
from woodbury.pruning.presets import standard

DATA_KINDS = (
    "`FILE.py:FUNCTION` that returns (x, y), (x, y, x_test, y_test), or one or two torch Datasets; "
    "a `.npz` file with x and y [x_test, y_test]; or a folder of class folders of images [in "
    "train/ and test/]. For transformers a csv, json, jsonl, txt or parquet file, a folder of "
    "them, or a name on the hub. Bytes and images come as numbers from 0 to 1, but for models by "
    "name: any other normalisation is the model's, or the function's."
)


def _whole_number(least: int | None = None) -> Callable[[Any, Sequence[Token]], int]:
    """A converter that refuses 1.5, which the one of cyclopts rounds."""
    limit = "" if least is None else f" of at least {least}"

    def convert(_: Any, tokens: Sequence[Token]) -> int:
        (token,) = tokens
        text = token.value.strip()
        is_whole = text.removeprefix("-").isdecimal()
        if not is_whole or (least is not None and int(text) < least):
            raise WoodburyError(f"{token.keyword} is {text!r}: give a whole number{limit}.")
        return int(text)

    return convert


Count = Annotated[int, Parameter(converter=_whole_number(1))]
Steps = Annotated[int, Parameter(converter=_whole_number(0))]
Seed = Annotated[int, Parameter(converter=_whole_number())]
Flag = Annotated[bool, Parameter(show_default=False)]
Patterns = Annotated[tuple[str, ...], Parameter(show_default=False)]

Model = Annotated[
    str,
    Parameter(
        help="`FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION` that returns the torch.nn.Module; "
        "`transformers:NAME`, `timm:NAME` or `torchvision:NAME[:WEIGHTS]`, where NAME may be a "
        "folder that the library, or `prune`, wrote."
    ),
]
Data = Annotated[str, Parameter(help=f"{DATA_KINDS} No y, or None for it: see `--labels`.")]
LabelledData = Annotated[str, Parameter(help=DATA_KINDS)]
Out = Annotated[Path, Parameter(help="The folder to write: new or empty.")]


@Parameter(name="*", group=Group("Method", sort_key=1))
@dataclass(frozen=True)
class MethodOptions:
    """How `prune` prunes.

    Attributes:
        sparsity: Removed ÷ all weights, in [0, 1); or by the names of the parameters, such as
            `conv1*=0,fc*=0.8,*=0.9`.
        method: What the loss is approximated by.
        update: What moves the kept weights: nothing (zero), each removal by itself (independent),
            or all of them together (joint).  [default: joint; zero for magnitude,
            diagonal-fisher and hessian-diagonal]
    """

    sparsity: str | None = None
    method: MethodName = "gauss-newton"
    update: UpdateName | None = None


@Parameter(name="*", group=Group("Methods", sort_key=1))
@dataclass(frozen=True)
class MethodsOptions:
    """What `compare` compares.

    Attributes:
        methods: With commas between: gauss-newton, magnitude, diagonal-fisher, hessian-diagonal,
            woodfisher, mfac, kfac, kfac-upper-bound; each also as NAME/UPDATE, where UPDATE is
            zero, independent or joint.
        sparsities: With commas between, each in [0, 1).  [default: 0.5,0.7,0.8,0.9,0.95]
        seeds: Calibration sets, drawn by seed, seed + 1, …
    """

    methods: str = "magnitude,diagonal-fisher,woodfisher/independent,mfac/independent,mfac/joint"
    sparsities: str | None = None
    seeds: Count = 3


@Parameter(name="*", group=Group("Curvature", sort_key=2))
@dataclass(frozen=True)
class CurvatureOptions:
    """What the Fisher is estimated from.

    Attributes:
        count: Gradients in the Fisher; for gauss-newton, inputs.  [default: 1000, or all that the
            data gives]
        mc_samples: GGN samples per input, for gauss-newton.
        batch: Samples that one gradient averages.
        labels: observed are the data's; sampled are drawn from the network, also for data without
            any; own are those that each method takes by itself: sampled for kfac, observed for
            all others.
        damping: A positive number; several with commas between, of which the best on held-out
            training data is taken, after the first stage; or auto, for 1e-6 to 1.  [default: auto;
            0.0003 for gauss-newton in `prune`, without `--epochs`]
        block: Weights per block.  [default: woodfisher 2000, mfac all in one]
    """

    count: Count | None = None
    mc_samples: Count = standard.mc_samples
    batch: Count = 1
    labels: LabelsName = "own"
    damping: str | None = None
    block: Count | None = None


@Parameter(name="*", group=Group("Selection", sort_key=3))
@dataclass(frozen=True)
class SelectionOptions:
    """Which weights are removed.

    Attributes:
        scope: Whether all weights compete (global), or every tensor gets the same sparsity
            (layerwise).
        unit: What is removed together: single weights; `block:4` or `block:4x1` (4 outputs × 1
            input); channels or rows (all that leads to one output); columns (all that one input
            leads to).
        pattern: N of every M weights along the inputs are kept, such as `2:4`. This fixes the
            sparsity.
        selection: greedy takes the smallest saliencies; `iterative-greedy:16` in 16 steps on one
            Fisher; `swaps:20` and `iht:20` (iterative hard thresholding) go on from there with at
            most 20 exchanges that lower the predicted loss; exhaustive tries all subsets.
        flops: The sparsity is a share of the FLOPs, not of the weights.
        flops_power: Divide saliencies by FLOPs^POWER, so that costly weights are removed first.
            [default: 1 with `--flops`, else 0]
        latency: The sparsity is a share of the time that the weights take on this CPU, by the
            layers that `woodbury.accelerate` makes of them. Saliencies are divided by that time.
        max_layer_sparsity: The largest sparsity of a single tensor, in (0, 1].
    """

    scope: ScopeName = "global"
    unit: str = "single"
    pattern: str | None = None
    selection: str = "greedy"
    flops: Flag = False
    flops_power: float | None = None
    latency: Flag = False
    max_layer_sparsity: float = 1.0


@Parameter(name="*", group=Group("Parameters", sort_key=4))
@dataclass(frozen=True)
class ParameterOptions:
    """Which parameters of the model are pruned.

    Attributes:
        include: Names of the parameters to prune, a shell pattern; repeatable.
        exclude: Names of parameters to leave alone; repeatable.
        keep_zeros: Weights that are zero already stay zero, and count as removed.
    """

    include: Patterns = ()
    exclude: Patterns = ()
    keep_zeros: Flag = False


@Parameter(name="*", group=Group("Stages", sort_key=5))
@dataclass(frozen=True)
class StageOptions:
    """What happens once or several times on the way.

    Attributes:
        stages: Stages on the way to the sparsity, each with fresh gradients.  [default: 1; for
            gauss-newton in `prune` as many as keep 70 % each, without `--epochs`]
        refit: Steps of output reconstruction after every stage; with `--epochs`, towards the
            outputs before each pruning step.  [default: 0; for gauss-newton in `prune` 1 where it
            has room, without `--epochs` and `--first-order`]
        first_order: Heed the gradient too (WoodTaylor): for networks that are not converged.
        recalibrate: Estimate BatchNorm's statistics again after pruning.
    """

    stages: Count | None = None
    refit: Steps | None = None
    first_order: Flag = False
    recalibrate: Flag = False


@Parameter(name="*", group=Group("Fine-tuning", sort_key=6))
@dataclass(frozen=True)
class FineTuningOptions:
    """The options of `prune` that count with --epochs alone.

    Attributes:
        epochs: Prune in steps and fine-tune for so many epochs meanwhile. The other options of
            this group and of the next need it.
        steps: Pruning steps, on a cubic schedule.
        prune_until: The fraction of the training after which the last step comes.
        optimizer: The optimizer.
        decay_off: No weight decay after the last pruning step.
    """

    epochs: Count | None = None
    steps: Count = 10
    prune_until: float = 0.6
    optimizer: FineTunerName = "sgd"
    decay_off: Flag = False


@Parameter(name="*", group=Group("Training", sort_key=6))
@dataclass(frozen=True)
class TrainingOptions:
    """The options of `train` alone.

    Attributes:
        epochs: Times through the training data.
        optimizer: The optimizer; kfac is sgd behind a preconditioner.
        window: Gradients that mfac remembers.  [default: 128]
        damping: The damping of the Fisher.  [default: mfac 0.01, kfac 0.03]
    """

    epochs: Count = 5
    optimizer: OptimizerName = "mfac"
    window: Count | None = None
    damping: float | None = None


@Parameter(name="*", group=Group("Optimizer", sort_key=7))
@dataclass(frozen=True)
class OptimizerOptions:
    """What `train` and the fine-tuning of `prune` have in common.

    Attributes:
        lr: Learning rate at first; a cosine takes it to 0 at the end, and in `prune` starts again
            after each pruning step.  [default: sgd 0.01, adam and adamw 0.001, mfac 0.003,
            kfac 0.03]
        momentum: The momentum; Adam's first beta.
        weight_decay: The optimizer's weight decay.  [default: 0; 1e-4 in `prune`]
        batch_size: Samples in a batch of training.
        resume: The same command again, with this: go on where the run in `--out` was stopped, or
            begin.
    """

    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    batch_size: Count = 64
    resume: Flag = False


@Parameter(name="*", group=Group("Model and data", sort_key=8))
@dataclass(frozen=True)
class InputOptions:
    """What the model and the data are made with.

    Attributes:
        checkpoint: Weights to load into the model: `.pt`, or `.safetensors`, dense or sparse.
        loss: cross_entropy for classes, squared_error for regression.
        size: Resize images to SIZE × SIZE.
        task: What a model of transformers does: text-classification, token-classification,
            causal-lm, masked-lm or image-classification.  [default: what it was made for]
        columns: What columns of the data hold, as `text=review,label=stars`; pairs of texts as
            `text=first+second`.  [default: those with usual names, such as text and label]
        length: Tokens of a sample at most; language models read longer texts in pieces.
            [default: what the model takes, 512 at most]
        seed: Seeds the splits and the calibration set; in `train` the network and the order of
            the samples.
    """

    checkpoint: Path | None = None
    loss: LossName = "cross_entropy"
    size: Count | None = None
    task: TaskName | None = None
    columns: str | None = None
    length: Annotated[int, Parameter(converter=_whole_number(2))] | None = None
    seed: Seed = 0


PlanOnly = Annotated[
    bool,
    Parameter(
        name="--plan",
        negative=(),
        show_default=False,
        group=Group("Memory", sort_key=9),
        help="Say what would be done, the seconds and the memory, and do nothing.",
    ),
]


@Parameter(name="*", group=Group("Memory", sort_key=9))
@dataclass(frozen=True)
class MemoryOptions:
    """What a command may hold.

    Attributes:
        memory: Bytes, or a size such as 6GiB.  [default: 60 % of what is available]
    """

    memory: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        if self.memory is not None:
            try:
                parse_bytes(self.memory)
            except WoodburyError as error:
                raise WoodburyError(
                    f"--memory is {self.memory!r}: give bytes or a size such as 6GiB."
                ) from error


@Parameter(name="*", group=Group("Memory", sort_key=9))
@dataclass(frozen=True)
class ScratchOptions:
    """Where lies what the memory does not hold.

    Attributes:
        scratch: A folder for the rows of mfac that have no room in memory.  [default: the system's
            temporary one]
    """

    scratch: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no folder."""
        if self.scratch is not None and not self.scratch.is_dir():
            raise WoodburyError(f"--scratch is {str(self.scratch)!r}: there is no such folder.")


@Parameter(name="*")
@dataclass(frozen=True)
class PruningOptions:
    """The groups of options that `prune` and `compare` share.

    Attributes:
        curvature: What the Fisher is estimated from.
        selection: Which weights are removed.
        parameters: Which parameters of the model are pruned.
        stage: What happens once or several times on the way.
        inputs: What the model and the data are made with.
        resources: What the command may hold.
        disk: Where lies what the memory does not hold.
    """

    curvature: CurvatureOptions = CurvatureOptions()
    selection: SelectionOptions = SelectionOptions()
    parameters: ParameterOptions = ParameterOptions()
    stage: StageOptions = StageOptions()
    inputs: InputOptions = InputOptions()
    resources: MemoryOptions = MemoryOptions()
    disk: ScratchOptions = ScratchOptions()


def settings_of(*groups: Any) -> dict[str, Any]:
    """The options of groups as settings that JSON and a saved run hold.

    Args:
        groups: Instances of the dataclasses of this module.

    Returns:
        Option -> number, text or list of texts. `resume`, `memory` and `scratch` are left out: a
        run that was resumed, perhaps with more memory, has the settings of one that was not.

    Example:
        >>> settings_of(InputOptions(checkpoint=Path("a.pt")))["checkpoint"]
        'a.pt'
    """
    settings: dict[str, Any] = {}
    for group in groups:
        for name, value in ((each.name, getattr(group, each.name)) for each in fields(group)):
            if is_dataclass(value):
                settings |= settings_of(value)
            elif name not in ("resume", "memory", "scratch"):
                settings[name] = _plain(value)
    return settings


def given(*groups: Any) -> list[str]:
    """The options that differ from their defaults, as they are written: `--batch-size`.

    Args:
        groups: Instances of the dataclasses of this module without groups in them.

    Example:
        >>> given(OptimizerOptions(batch_size=32))
        ['--batch-size']
    """
    return [
        f"--{each.name.replace('_', '-')}"
        for group in groups
        for each in fields(group)
        if getattr(group, each.name) != each.default
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
