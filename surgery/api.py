"""The verbs of the command line, for Python; `diff` and `extract_lora` are in the packages that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from surgery.workers import chosen_workers

# torch, pydantic and the rest are imported when a verb is called: `import surgery` and `surgery --help` stay quick.
if TYPE_CHECKING:
    from surgery.checkpoint import Checkpoint
    from surgery.executor import Progress
    from surgery.making import Options
    from surgery.plan import Plan
    from surgery.recipe import Recipe
    from surgery.verification import Verified

    RecipeSource: TypeAlias = str | Path | Mapping[str, object] | Recipe

Model = str | Path
Models = Sequence[Model] | Mapping[str, Model]


@dataclass(frozen=True)
class Applied:
    """What `apply` did: the plan that was carried out, where, and how many tensors an earlier run had made."""

    out: Path
    plan: Plan
    resumed: int


@dataclass(frozen=True)
class Variant:
    """One of several outputs that are made together: a recipe, values for its parameters, and where it goes.

    `models` are the models of its roles, where they are not those that all variants have in common.
    """

    recipe: RecipeSource
    out: str | Path
    settings: Mapping[str, object] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)


def plan(recipe: RecipeSource, models: Models = (), *, settings: Mapping[str, object] | None = None) -> Plan:
    """Everything that `apply` would do, from the recipe and the checkpoints' headers alone.

    `models` are directories, `.safetensors` files or hub ids, in the order of the recipe's roles, or a mapping
    from role to model; a recipe file of mergekit names its own. `settings` are values for the recipe's parameters, as
    in `--set head=40%`.
    Raises RecipeError, CheckpointError, PlanError.
    """
    from surgery.recipe import load

    loaded = load(recipe, settings or {})
    (made,) = _plan_all([Variant(loaded, "", models=_bind(loaded, models))], {})
    return made


def apply(
    recipe: RecipeSource,
    models: Models,
    out: str | Path,
    *,
    settings: Mapping[str, object] | None = None,
    workers: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    cache: bool = True,
    overwrite: bool = False,
    fresh: bool = False,
    durable: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Edit `models` by `recipe` into the checkpoint directory `out`, which is complete or does not exist.

    models: as for `plan`; `()` for those that a recipe file of mergekit names.
    workers: tensors made at a time, each with one thread of arithmetic; default: the processors. No effect on bytes.
    memory: bound of the process's resident memory in bytes. device: a torch device for the arithmetic.
    cache: keep decompositions for other runs, and use those that others kept; no effect on bytes.
    overwrite: replace an existing `out` once the new one is complete. fresh: drop what an interrupted run left.
    durable: wait until the disk has everything (against power failures; kills need no waiting).
    progress: told of the plan, and of each tensor as it is finished.

    Run again after an interruption it goes on where it was, to the same bytes. Raises any SurgeryError.
    """
    from surgery.making import Options
    from surgery.recipe import load

    loaded = load(recipe, settings or {})
    bound = _bind(loaded, models)
    options = Options(chosen_workers(workers), memory, device, cache, overwrite, fresh, durable, keep=False)
    (applied,) = _apply([Variant(loaded, out)], bound, options, progress)
    return applied


def apply_all(
    variants: Sequence[Variant],
    models: Mapping[str, Model],
    *,
    beside: Sequence[Variant] = (),
    workers: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    cache: bool = True,
    overwrite: bool = False,
    fresh: bool = False,
    durable: bool = False,
    progress: Progress | None = None,
) -> list[Applied]:
    """Make all variants in one pass over the tensors: each input is read once, and decomposed once for all of them;
    an operation that measures tensors of more than one piece reads its own inputs once more for each of its passes.

    `models` maps the roles of all recipes to models; a recipe may have some of the roles only. The other arguments are
    those of `apply`, and so is what holds for each output. They get their names together, at the end. An `out` that is
    finished, made from the same plan and from inputs not touched since, is left as it is, unless `fresh`.

    Bytes are those of `apply`, except where several variants ask for different numbers of singular triplets of one
    matrix: all then get parts of the largest decomposition, and differ from `apply` by the rounding of float32. That
    depends on all `variants`, not on what is finished: pass the same ones again to go on after an interruption. With
    others, what was left unfinished is made anew where its last bits might differ.

    `beside` are variants that are made in other calls: they count for the size of decompositions, and so for `memory`,
    and nothing else is done about them. In whatever parts a set of variants is made, each time with the rest of it in
    `beside`, its bytes are the same.

    Returns one result for each of `variants`, in order. Raises any SurgeryError.
    """
    from surgery.making import Options

    options = Options(chosen_workers(workers), memory, device, cache, overwrite, fresh, durable, keep=True)
    return _apply(variants, models, options, progress, beside)


def _apply(
    variants: Sequence[Variant],
    models: Mapping[str, Model],
    options: Options,
    progress: Progress | None,
    beside: Sequence[Variant] = (),
) -> list[Applied]:
    from surgery.making import make_outputs

    plans = _plan_all([*variants, *beside], models)
    outs = [Path(variant.out) for variant in variants]
    resumed = make_outputs(plans, outs, options, progress)
    return [Applied(out, plan, count) for out, plan, count in zip(outs, plans, resumed, strict=False)]


def _plan_all(variants: Sequence[Variant], models: Mapping[str, Model]) -> list[Plan]:
    """The plans of all variants, from checkpoints that are opened once each. Raises PlanError for a missing role."""
    from surgery.checkpoint import open_checkpoint
    from surgery.errors import Fault, PlanError
    from surgery.planner import make_plan
    from surgery.recipe import load

    recipes = [load(variant.recipe, variant.settings) for variant in variants]
    bound = [{**models, **variant.models} for variant in variants]
    pairs = [*zip(recipes, bound, strict=True)]
    lacking = {(loaded.origin, role): own for loaded, own in pairs for role in loaded.models if role not in own}
    if lacking:
        faults = []
        for (origin, role), own in lacking.items():
            found = ", ".join(f"`{name}`" for name in own) or "none"
            faults.append(Fault(origin, f"no model for the role `{role}`; found {found}"))
        raise PlanError(faults)
    used = dict.fromkeys(str(own[role]) for loaded, own in pairs for role in loaded.models)
    opened = {model: open_checkpoint(model) for model in used}
    return [make_plan(loaded, {role: opened[str(own[role])] for role in loaded.models}) for loaded, own in pairs]


def verify(out: str | Path, *, workers: int | None = None) -> Verified:
    """Read an output again and compare it with its manifest. Raises VerifyError with everything that differs."""
    from surgery import verification

    return verification.verify(Path(out), chosen_workers(workers))


def inspect(model: Model) -> Checkpoint:
    """What the headers of a checkpoint say: `tensors`, and in `anatomy` layers and groups. Raises CheckpointError."""
    from surgery.checkpoint import open_checkpoint

    return open_checkpoint(model)


def recipes() -> tuple[str, ...]:
    """The names of the bundled recipes."""
    from surgery import bundled

    return tuple(bundled.names())


def schema() -> dict[str, object]:
    """The JSON Schema of the recipe format."""
    from surgery import recipe_schema

    return recipe_schema.schema()


def _bind(recipe: Recipe, models: Models) -> dict[str, Model]:
    """The model for each role; without `models` those that the recipe's file names. Raises PlanError when the numbers
    or the names differ.
    """
    from surgery.errors import Fault, PlanError

    if recipe.named and not isinstance(models, str | Path) and not models:
        return dict(recipe.named)
    roles = list(recipe.models)
    if isinstance(models, Mapping):
        if set(models) != set(roles):
            found = ", ".join(f"`{role}`" for role in models) or "none"
            raise PlanError([Fault(recipe.origin, f"found models for {found}; {_expected(recipe)}")])
        return {role: models[role] for role in roles}
    if isinstance(models, str | Path) or len(models) != len(roles):
        single = isinstance(models, str | Path) or len(models) == 1
        found = "one model" if single else f"{len(models)} models"
        raise PlanError([Fault(recipe.origin, f"found {found}; {_expected(recipe)}")])
    return dict(zip(roles, models, strict=True))


def _expected(recipe: Recipe) -> str:
    """The models that a recipe wants, and where to look."""
    from surgery.bundled import is_bundled
    from surgery.wording import quoted

    more = f"; `surgery recipes {recipe.name}` prints the recipe" if is_bundled(recipe.name, recipe.text) else ""
    return f"expected {len(recipe.models)}, for the roles {quoted(recipe.models)}, in this order{more}"
