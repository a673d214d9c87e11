"""The format of a sweep: recipes with values for their parameters, an evaluation, and what is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from surgery.recipe import RecipeName, RoleName
from surgery.wording import quoted, show

Keep = Literal["best", "pareto", "all", "none"]
Measure = Literal["accuracy", "reward", "loss_per_token", "loss_per_sequence"]
LOSSES = ("loss_per_token", "loss_per_sequence")  # measures of which less is better


class Section(BaseModel):
    """A map of a sweep: frozen, strict, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Variants(Section):
    """A recipe, and the values of its parameters that are tried."""

    recipe: str | dict[str, Any] = Field(
        description="a bundled recipe's name, a file (beside the sweep's own), or a recipe"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="values of parameters, as in `--set`")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="lists of values of parameters; every combination is a variant"
    )
    bind: dict[str, str] = Field(
        default_factory=dict, description="the sweep's model for a role of the recipe, where their names differ"
    )

    @field_validator("grid")
    @classmethod
    def _not_set_too(cls, grid: dict[str, list[Any]], info: ValidationInfo) -> dict[str, list[Any]]:
        both = [name for name in grid if name in info.data.get("set", {})]
        if both:
            raise ValueError(f"{quoted(both)} stands in `set` as well; keep one")
        return grid


class Asked(Section):
    """What every model is asked: as the options of `surgery eval`."""

    task: str = Field(description="a task of `surgery eval --list`")
    set: dict[str, Any] = Field(default_factory=dict, description="the task's parameters")
    splits: tuple[str, ...] = Field(default=(), description="the splits that are scored; default: the task's")
    part: Literal["test", "validation", "rl", "train"] = Field(default="test", description="of the task's data")
    n: int | None = Field(default=None, ge=1, description="examples of each split; default: the task's")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        default=(0,), min_length=1, description="each draws examples and samples answers anew"
    )
    engine: str | None = Field(default=None, description="vllm or transformers; default: vllm where it is installed")
    engine_options: dict[str, Any] = Field(default_factory=dict, description="passed to the engine")
    attempts: int | None = Field(default=None, ge=1, description="tries at an example; default: the task's")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    max_tokens: int | None = Field(default=None, ge=1, description="of one answer; default: the task's")
    prompt: str | None = Field(default=None, description="a Jinja file for the question (beside the sweep's own)")
    chat: bool = Field(default=True, description="through the chat template; without it prompts are plain text")
    chat_template: str | None = Field(
        default=None, description="a file that replaces the models' template (beside the sweep's own)"
    )

    @field_validator("seeds", "splits")
    @classmethod
    def _distinct(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        return _once(values)


class Objective(Section):
    """What the winner is best in, and what it may lose."""

    improve: str | dict[str, float] | None = Field(
        default=None, description="a split, or weights of splits; default: the mean of all"
    )
    measure: Measure = Field(default="accuracy", description="of the losses, less is better")
    tolerate: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="by how much a split may be worse than `start`, in units of the measure"
    )

    @field_validator("improve")
    @classmethod
    def _weighs(cls, improve: str | dict[str, float] | None) -> str | dict[str, float] | None:
        if isinstance(improve, dict) and (min(improve.values(), default=0) < 0 or not sum(improve.values())):
            found = ", ".join(f"{split} {weight:g}" for split, weight in improve.items()) or "nothing"
            raise ValueError(f"found the weights {show(found)}; expected 0 or more for each split, and not 0 for all")
        return improve


class Sweep(Section):
    """A sweep. Made by `evalkit.sweeps.loading.load`."""

    name: RecipeName = Field(description="the sweep's name, one word")
    summary: str = Field(default="", description="what is tried, in a sentence")
    models: tuple[RoleName, ...] = Field(
        min_length=1, description="roles; the checkpoints on the command line are bound to them in this order"
    )
    start: str = Field(
        default_factory=lambda data: data["models"][-1],
        description="the model that all others are compared with; default: the last of `models`",
    )
    variants: tuple[Variants, ...] = Field(min_length=1, description="recipes, and what is tried of each")
    averages: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.25, 0.5, 0.75),
        description="weights of the edited model in averages with the one it borrows from, tried beside every recipe "
        "of two models; [] for none",
    )
    evaluation: Asked = Field(description="what every model is asked")
    objective: Objective = Field(default_factory=Objective, description="what the winner is best in")
    keep: Keep = Field(default="best", description="which checkpoints stay: best, pareto, all or none")

    @field_validator("models", "averages")
    @classmethod
    def _distinct(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        return _once(values)

    @model_validator(mode="after")
    def _start_exists(self) -> Sweep:
        if self.start not in self.models:
            raise ValueError(f"`start` is {show(self.start)}, and the sweep's models are {quoted(self.models)}")
        return self

    @property
    def loss(self) -> bool:
        """Whether reference answers are scored, and nothing is generated."""
        return self.objective.measure in LOSSES


def sign_of(measure: str) -> int:
    """-1 for a measure of which less is better."""
    return -1 if measure in LOSSES else 1


def _once(values: tuple[object, ...]) -> tuple[object, ...]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"found {_listed(twice)} twice; name each once")
    return values


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(show, values)))
