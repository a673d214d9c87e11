"""The tasks by name. To add one: a file here with a subclass of `Task`, and a line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from evalkit.errors import TaskError
from evalkit.task import Task
from evalkit.tasks.determinant import Determinant
from evalkit.tasks.general_points import GeneralPoints
from evalkit.tasks.general_points_steps import GeneralPointsSteps
from evalkit.tasks.jsonl import Jsonl
from evalkit.tasks.matrix_rank import MatrixRank
from surgery.errors import RecipeError
from surgery.source import spell
from surgery.validation import mistakes
from surgery.wording import show, suggestion
from surgery.yaml_source import read_yaml

TASKS: Mapping[str, type[Task]] = {
    "general_points": GeneralPoints,
    "general_points_steps": GeneralPointsSteps,
    "matrix_rank": MatrixRank,
    "determinant": Determinant,
    "jsonl": Jsonl,
}


def make_task(name: str, settings: Mapping[str, object]) -> Task:
    """The task of that name with its parameters; text in `settings` is read as YAML. Raises TaskError."""
    if name not in TASKS:
        raise TaskError(f"unknown task {show(name)}; {suggestion(name, [*TASKS, 'lm_eval:NAME'], 'the tasks')}")
    task = TASKS[name]
    data = {key: _read(task, key, value) for key, value in settings.items()}
    try:
        return task.model_validate(data)
    except ValidationError as error:
        found = mistakes(error, task, data, (), ())
        lines = [f"--set {spell(m.path)}: {m.message}" if m.path else f"{name}: {m.message}" for m in found]
        raise TaskError("\n".join(lines)) from error


def _read(task: type[Task], key: str, value: object) -> object:
    """Text as the value that it means; for a parameter that is text, and for names that are no parameters, as it is."""
    field = task.model_fields.get(key)
    if not isinstance(value, str) or field is None or field.annotation in (str, str | None):
        return value
    where = f"--set {key}={value}"
    try:
        source = read_yaml(value, where)
    except RecipeError as error:
        raise TaskError(str(error)) from error
    if source.mistakes:
        raise TaskError("\n".join(f"{where}: {mistake.message}" for mistake in source.mistakes))
    return source.data
