"""The options of all commands: each is declared once, in a dataclass that is a group of the help.

The help of an option is its entry in the docstring of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from woodbury.cli.names import LabelsName, LossName, MethodName, ScopeName, TaskName, UpdateName
from woodbury.cli.optimizers import FineTunerName, OptimizerName
from woodbury.errors import WoodburyError
from woodbury.memory.budget import parse_bytes
from woodbury.pruning.presets import standard

MOST_USED = Group("Most used", sort_key=1)
DATA = Group("Data", sort_key=2)
SELECTION = Group("Selection", sort_key=3)
CURVATURE = Group("Curvature", sort_key=4)
TRAINING = Group("Training", sort_key=5)
OUTPUT = Group("Output", sort_key=6)
"""The panels of every --help."""

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


def out_option(default: str) -> Parameter:
    """The option --out of a command.

    Args:
        default: What the folder is called where none is given.
    """
    return Parameter(
        group=MOST_USED,
        help=f"The folder to write: new or empty.  [default: runs/{default}, or with -2, -3, …]",
    )


ConfigFile = Annotated[
    Path | None,
    Parameter(
        name="--config",
        group=OUTPUT,
        help="A TOML file of options, such as the run.toml that the command writes into its "
        "folder. What the command line says counts more.",
    ),
]
"""`woodbury.cli.run_file.fill_from_file` reads it before the command is called."""


@Parameter(name="*", group=MOST_USED)
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
    update: Annotated[UpdateName | None, Parameter(group=CURVATURE)] = None


@Parameter(name="*", group=MOST_USED)
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


@Parameter(name="*", group=CURVATURE)
@dataclass(frozen=True)
class CurvatureOptions:
    """What the Fisher is estimated from.

    Attributes:
        count: Gradients in the Fisher; for gauss-newton, inputs.  [default: 1000, or all that the
            data gives]
        mc_samples: GGN samples per input, for gauss-newton.
        batch: Samples that one gradient averages.
        labels: Of the gradients: those of the data (observed); drawn from the network (sampled),
            also for data without any; or what each method takes by itself (own): sampled for kfac,
            observed for all others.
        damping: A positive number; several with commas between, of which the best on held-out
            training data is taken, after the first stage; or auto, for 1e-6 to 1.  [default: auto;
            0.0003 for gauss-newton without `--epochs`]
        block: Weights per block.  [default: woodfisher 2000, mfac all in one]
    """

    count: Count | None = None
    mc_samples: Count = standard.mc_samples
    batch: Count = 1
    labels: Annotated[LabelsName, Parameter(group=MOST_USED)] = "own"
    damping: str | None = None
    block: Count | None = None


@Parameter(name="*", group=SELECTION)
@dataclass(frozen=True)
class SelectionOptions:
    """Which weights are removed.

    Attributes:
        scope: Whether all weights compete (global), or every tensor gets the same sparsity
            (layerwise).
        unit: What is removed together: single weights; `block:4` or `block:4x1` (4 outputs × 1
            input); channels or rows (all that leads to one output); columns (all that one input
            leads to); coupled-channels (channels with all that must be removed with them, so that
            `export --compact` makes the layers smaller).
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
        max_layer_sparsity: The largest sparsity of a single tensor, or of tensors whose channels
            are coupled, in (0, 1].
    """

    scope: ScopeName = "global"
    unit: str = "single"
    pattern: Annotated[str | None, Parameter(group=MOST_USED)] = None
    selection: str = "greedy"
    flops: Flag = False
    flops_power: float | None = None
    latency: Flag = False
    max_layer_sparsity: float = 1.0


@Parameter(name="*", group=SELECTION)
@dataclass(frozen=True)
class ParameterOptions:
    """Which parameters of the model are pruned.

    Attributes:
        include: Names of the parameters to prune, a shell pattern; repeatable.
        exclude: Names of parameters to leave alone; repeatable.
        keep_zeros: Weights that are zero already stay zero, and count as removed.
    """

    include: Patterns = ()
    exclude: Annotated[Patterns, Parameter(group=MOST_USED, show_default=False)] = ()
    keep_zeros: Flag = False


@Parameter(name="*", group=CURVATURE)
@dataclass(frozen=True)
class StageOptions:
    """What happens once or several times on the way.

    Attributes:
        stages: Stages on the way to the sparsity, each with fresh gradients.  [default: 1; for
            gauss-newton without `--epochs` those of `woodbury.prune`, or, with options about the
            method, as many as keep 66 % each]
        refit: Steps of output reconstruction after every stage; with `--epochs`, towards the
            outputs before each pruning step.  [default: 0; for gauss-newton without `--epochs`
            and `--first-order` 1 where it has room]
        first_order: Heed the gradient too (WoodTaylor): for networks that are not converged.
        recalibrate: Estimate BatchNorm's statistics again after pruning.
    """

    stages: Count | None = None
    refit: Steps | None = None
    first_order: Flag = False
    recalibrate: Flag = False


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True)
class FineTuningOptions:
    """The options of `prune` that count with --epochs alone.

    Attributes:
        epochs: Prune in steps and fine-tune for so many epochs meanwhile. The options of training
            need it.
        steps: Pruning steps, on a cubic schedule.
        prune_until: The fraction of the training after which the last step comes.
        optimizer: The optimizer.
        decay_off: No weight decay after the last pruning step.
    """

    epochs: Annotated[Count | None, Parameter(group=MOST_USED)] = None
    steps: Count = 10
    prune_until: float = 0.6
    optimizer: FineTunerName = "sgd"
    decay_off: Flag = False


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True)
class TrainingOptions:
    """The options of `train` alone.

    Attributes:
        epochs: Times through the training data.
        optimizer: The optimizer; kfac is sgd behind a preconditioner.
        window: Gradients that mfac remembers.  [default: 128]
        damping: The damping of the Fisher.  [default: mfac 0.01, kfac 0.03]
    """

    epochs: Annotated[Count, Parameter(group=MOST_USED)] = 5
    optimizer: Annotated[OptimizerName, Parameter(group=MOST_USED)] = "mfac"
    window: Count | None = None
    damping: float | None = None


@Parameter(name="*", group=TRAINING)
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
    resume: Annotated[Flag, Parameter(group=OUTPUT, show_default=False)] = False


@Parameter(name="*", group=DATA)
@dataclass(frozen=True)
class InputOptions:
    """What the model and the data are made with.

    Attributes:
        checkpoint: Weights to load into the model: `.pt`, or `.safetensors`, dense or sparse.
        loss: cross_entropy for classes, smoothed_cross_entropy for a network trained with label
            smoothing 0.1, binary for answers of 0 or 1, one logit each, squared_error for
            regression.
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

    checkpoint: Annotated[Path | None, Parameter(group=MOST_USED)] = None
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
        group=MOST_USED,
        help="Say what would be done, the seconds and the memory, and do nothing.",
    ),
]


@Parameter(name="*", group=MOST_USED)
@dataclass(frozen=True)
class MemoryOptions:
    """What a command may hold.

    Attributes:
        memory: What the command may hold: bytes, or a size such as 6GiB.  [default: 60 % of what is
            available]
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


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class ScratchOptions:
    """Where lies what the memory does not hold.

    Attributes:
        scratch: A folder for gradient rows that have no room in memory, those of mfac without
            `--block`; nothing is left in it.  [default: the system's temporary one]
    """

    scratch: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class PruningOptions:
    """The groups of options that `prune` and `compare` share.

    Attributes:
        selection: Which weights are removed.
        parameters: Which parameters of the model are pruned.
        inputs: What the model and the data are made with.
        curvature: What the Fisher is estimated from.
        stage: What happens once or several times on the way.
        resources: What the command may hold.
        disk: Where lies what the memory does not hold.
    """

    selection: SelectionOptions = SelectionOptions()
    parameters: ParameterOptions = ParameterOptions()
    inputs: InputOptions = InputOptions()
    curvature: CurvatureOptions = CurvatureOptions()
    stage: StageOptions = StageOptions()
    resources: MemoryOptions = MemoryOptions()
    disk: ScratchOptions = ScratchOptions()
