"""From a sweep to its candidates: every combination of values, and the averages that stand beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Literal

from evalkit.errors import SweepError
from evalkit.sweeps.loading import beside
from evalkit.sweeps.spec import Sweep, Variants
from surgery.errors import Fault, RecipeError
from surgery.recipe import Recipe, load
from surgery.source import Path, Source
from surgery.wording import quoted, show, suggestion

AVERAGE = "wise-ft"  # the recipe of the averages; its roles are `base` and `sft`, its parameter `alpha`
MAX_CANDIDATES = 1000
MAX_NAME = 100  # characters; of a longer name the beginning is shown, and a digest tells it from others


@dataclass(frozen=True)
class Candidate:
    """A recipe with its parameters' values; `models` gives for each of its roles the sweep's.

    `parameters` are those that the sweep sets. A `baseline` is a plain average of models, asked for or not. `typed` is
    what `surgery apply` knows the recipe by; None for one that stands in the sweep itself.
    """

    name: str
    kind: Literal["variant", "baseline"]
    recipe: Recipe
    typed: str | None
    models: Mapping[str, str]
    parameters: Mapping[str, Any]


def expand(sweep: Sweep, source: Source) -> list[Candidate]:
    """All candidates, in the sweep's order, then the averages. Raises SweepError with all that is wrong with them."""
    faults: list[Fault] = []
    found: list[Candidate] = []
    for number, variants in enumerate(sweep.variants):
        try:
            found += _Expansion(sweep, variants, source, ("variants", number)).candidates(MAX_CANDIDATES - len(found))
        except SweepError as error:
            faults += error.faults
    found += _averages(sweep, found)
    names = [candidate.name for candidate in found]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        message = f"{quoted(dict.fromkeys(twice))} come out twice; name each value and each recipe once"
        faults.append(Fault(source.where(("variants",)), message))
    reserved = sorted(set(names) & set(sweep.models))
    if reserved:
        message = f"{quoted(reserved)} are names of variants, too; choose others"
        faults.append(Fault(source.where(("models",)), message))
    if faults:
        raise SweepError([*dict.fromkeys(faults)])
    return found


class _Expansion:
    """One item of `variants` and its recipe."""

    def __init__(self, sweep: Sweep, variants: Variants, source: Source, path: Path) -> None:
        self._sweep = sweep
        self._variants = variants
        self._source = source
        self._path = path
        self._typed: str | None = None
        asked = variants.recipe
        if isinstance(asked, str):
            file = beside(asked, source)
            asked = self._typed = asked if file is None else str(file)
        try:
            self._recipe = load(asked)
        except RecipeError as error:
            raise SweepError([self._fault(str(fault), "recipe") for fault in error.faults]) from error

    def candidates(self, room: int) -> list[Candidate]:
        """All combinations. Raises SweepError, and where there are more than `room`."""
        faults = [*self._unknown(), *self._unbound()]
        if prod(map(len, self._variants.grid.values())) > room:
            message = f"makes more than {MAX_CANDIDATES:,} variants in all; take fewer values, or several sweeps"
            faults.append(self._fault(message, "grid"))
        if faults:
            raise SweepError(faults)
        found = []
        for parameters in self._combinations():
            try:
                found.append(self._candidate(parameters))
            except RecipeError as error:
                faults += [self._fault(str(fault)) for fault in error.faults]
        if faults:
            raise SweepError(faults)
        return found

    def _candidate(self, parameters: Mapping[str, Any]) -> Candidate:
        models = {role: self._variants.bind.get(role, role) for role in self._recipe.models}
        return make_candidate(load(self._recipe, parameters), self._typed, models, parameters)

    def _combinations(self) -> Iterator[dict[str, Any]]:
        grid = self._variants.grid
        for values in product(*grid.values()):
            yield {**self._variants.set, **dict(zip(grid, values, strict=True))}

    def _unknown(self) -> Iterator[Fault]:
        """Parameters that the recipe does not have; keys of its output section are told apart when it is loaded."""
        known = self._recipe.parameters
        for key, names in (("set", self._variants.set), ("grid", self._variants.grid)):
            for name in names:
                if name not in known and not name.startswith("output."):
                    hint = suggestion(name, known, "its parameters")
                    yield self._fault(f"`{self._recipe.name}` has no parameter {show(name)}; {hint}", key, name)

    def _unbound(self) -> Iterator[Fault]:
        """Roles and models that do not exist, and roles without a model."""
        recipe, bind, models = self._recipe, self._variants.bind, self._sweep.models
        for role, model in bind.items():
            if role not in recipe.models:
                hint = suggestion(role, recipe.models, "its roles")
                yield self._fault(f"`{recipe.name}` has no role {show(role)}; {hint}", "bind", role)
            if model not in models:
                hint = suggestion(model, models, "its models")
                yield self._fault(f"{show(model)} is not among the sweep's models; {hint}", "bind", role)
        missing = [role for role in recipe.models if role not in bind and role not in models]
        if missing:
            yield self._fault(
                f"`{recipe.name}` edits {quoted(recipe.models)}, and the sweep's models are {quoted(models)}; say "
                f"which stands for {quoted(missing)}: `bind: {{{missing[0]}: {models[0]}}}`"
            )

    def _fault(self, message: str, *path: str) -> Fault:
        return Fault(self._source.where((*self._path, *path)), message)


def _averages(sweep: Sweep, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Averages of each two models of which a recipe edits one with the other, unless the sweep has them already."""
    pairs: dict[tuple[str, str], None] = {}
    for candidate in candidates:
        stacked = candidate.recipe.slices is not None  # the two models may be of different depth
        if len(candidate.models) == 2 and candidate.kind == "variant" and not stacked:
            other = next(role for role in candidate.models if role != candidate.recipe.start)
            pairs[candidate.models[other], candidate.models[candidate.recipe.start]] = None
    known = [(candidate.recipe.canonical(), candidate.models) for candidate in candidates]
    added = []
    for (other, start), alpha in product(pairs, sweep.averages):
        models, parameters = {"base": other, "sft": start}, {"alpha": alpha}
        recipe = load(AVERAGE, parameters)
        if other != start and (recipe.canonical(), models) not in known:
            added.append(make_candidate(recipe, AVERAGE, models, parameters))
    return added


def make_candidate(
    recipe: Recipe, typed: str | None, models: Mapping[str, str], parameters: Mapping[str, Any]
) -> Candidate:
    """A candidate with its name: `restore-top-20pct head=40% sft=rl`, what tells it from the others."""
    bound = {role: model for role, model in models.items() if role != model}
    name = " ".join([recipe.name, *(f"{key}={spelt(value)}" for key, value in {**parameters, **bound}.items())])
    name = " ".join(name.split())
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 8]}… {hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"
    plain = recipe.slices is None and all(step.op == "linear" for step in recipe.steps)
    return Candidate(name, "baseline" if plain else "variant", recipe, typed, dict(models), dict(parameters))


def spelt(value: object) -> str:
    """A parameter's value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
