"""A pruning method as the options ask for it, known to be possible before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from woodbury.cli.named_methods import METHODS, NamedMethod, Sampling
from woodbury.cli.names import UPDATES, MethodName, UpdateName, parse_dampings, pick
from woodbury.cli.option_values import given, settings_of
from woodbury.cli.options import PruningOptions
from woodbury.cli.rules import SelectionRules
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import Method
from woodbury.pruning.costs import Cost
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.solver_choice import describe_refit
from woodbury.pruning.units import Unit


@dataclass(frozen=True)
class MethodPlan:
    """A method as asked for, known to be possible before any work; `method` gives it its numbers.

    Attributes:
        name: Its name.
        parts: What the name stands for.
        update: What moves the kept weights.
        rules: Which weights are removed.
        first_order: Whether the gradient is heeded too.
        stages: Stages with fresh gradients; None for as many as the sparsity asks for.
        dampings: The candidates; empty for a method without a Fisher.
        refit_steps: Steps of output reconstruction after every stage; None for one where it has
            room.
        settings: The options about the selection, for tables.
        by_effort: Whether no option is about the method, so that it does what `woodbury.prune`
            does.
    """

    name: MethodName
    parts: NamedMethod
    update: UpdateName
    rules: SelectionRules
    first_order: bool
    stages: int | None
    dampings: tuple[float, ...]
    refit_steps: int | None
    settings: Mapping[str, Any]
    by_effort: bool = False

    def method(
        self,
        sampling: Sampling,
        cost: Cost | None = None,
        refit: Refit | None = None,
        stages: int = 1,
        coupled: Unit | None = None,
    ) -> Method:
        """The method that estimates its Fisher so.

        Args:
            sampling: What the Fisher is estimated from. It begins with the first damping.
            cost: FLOPs or seconds of the model's weights, for rules that count them.
            refit: After every stage.
            stages: Stages with fresh gradients.
            coupled: What is coupled in the network, for rules that ask for it.
        """
        saliency = self.parts.saliency
        if self.first_order and self.parts.first_order_saliency:
            saliency = self.parts.first_order_saliency
        pruner = Pruner(
            fisher=self.parts.fisher(sampling, self.dampings[0]) if self.parts.fisher else None,
            saliency=saliency,
            update=UPDATES[self.update],
            first_order=self.first_order,
        )
        return Method(
            pruner=self.rules.applied(pruner, cost, coupled),
            stages=stages,
            dampings=self.dampings,
            settings={**self.facts(), "refits": describe_refit(refit)},
            refit=refit,
        )

    def facts(self) -> dict[str, Any]:
        """What was asked for, for tables."""
        return {
            "recipe": self.name,
            "update": self.update,
            "first_order": self.first_order,
            **self.settings,
        }

    @property
    def chooses(self) -> bool:
        """Whether a damping is chosen on training data that is held out."""
        return len(self.dampings) > 1


def plan_method(text: str, options: PruningOptions, update: UpdateName | None = None) -> MethodPlan:
    """The plan of a method.

    Args:
        text: `NAME` or `NAME/UPDATE`, such as `mfac/independent`.
        options: How it prunes.
        update: For a text that names none; None for the method's usual one.

    Raises:
        WoodburyError: For a name that there is not, and for what the method cannot do.

    Example:
        >>> plan_method("mfac/independent", PruningOptions()).update
        'independent'
    """
    name, _, named_update = text.partition("/")
    parts = pick(METHODS, name, "method")
    chosen = named_update or update or parts.update
    pick(UPDATES, chosen, "update")
    if parts.fisher is None and chosen != "zero":
        raise WoodburyError(
            f"{name} has no Fisher for the update {chosen!r}: leave the update out."
        )
    first_order = options.stage.first_order
    if parts.first_order_saliency is None and first_order:
        raise WoodburyError(
            f"{name} has no first-order form: leave --first-order out, or take mfac or woodfisher."
        )
    rules = SelectionRules.of(options.selection)
    if rules.pattern and parts.fisher and rules.max_layer_sparsity < 1:
        raise WoodburyError(
            "--pattern fixes the sparsity of every group, so --max-layer-sparsity has no effect: "
            "leave it out."
        )
    dampings = parse_dampings(options.curvature.damping or "auto")
    return MethodPlan(
        name=cast(MethodName, name),  # METHODS has it
        parts=parts,
        update=cast(UpdateName, chosen),  # and UPDATES has this
        rules=rules,
        first_order=first_order,
        stages=options.stage.stages or 1,
        dampings=dampings if parts.fisher else (),
        refit_steps=options.stage.refit or 0,
        settings=settings_of(options.selection),
    )


def plan_pruning(
    text: str, options: PruningOptions, update: UpdateName | None = None
) -> MethodPlan:
    """The plan of a method for `prune` without fine-tuning and for `compare`: the same in both.

    gauss-newton with the joint update is what `woodbury.prune` does. An option about the method
    makes it a method of its own; what no option says is then as there: stages, refits, damping.

    Args:
        text: As for `plan_method`.
        options: How it prunes.
        update: As for `plan_method`.

    Raises:
        WoodburyError: As `plan_method`.

    Example:
        >>> plan_pruning("gauss-newton", PruningOptions()).by_effort
        True
        >>> plan_pruning("gauss-newton/independent", PruningOptions()).stages
        1
    """
    plan = plan_method(text, options, update)
    if (plan.name, plan.update) != ("gauss-newton", "joint"):
        return plan
    stage, curvature = options.stage, options.curvature
    # Gauss–Newton rows need no labels, whichever are drawn for data without any.
    about_it = set(given(options.selection, stage, curvature)) - {"--labels", "--recalibrate"}
    leads_elsewhere = stage.first_order  # than to the dense network's outputs, as labels do
    return replace(
        plan,
        by_effort=not about_it,
        stages=stage.stages,
        dampings=plan.dampings if curvature.damping else standard.dampings,
        refit_steps=0 if leads_elsewhere and stage.refit is None else stage.refit,
    )
