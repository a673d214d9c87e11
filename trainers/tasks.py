"""The task that a configuration names, with what is wrong told in the words of the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from evalkit.errors import TaskError
from evalkit.task import Task
from evalkit.tasks import TASKS, make_task
from surgery.errors import Fault
from surgery.wording import show, suggestion
from trainers.errors import DataError

_OPTION = "--set "  # how `surgery eval` names a parameter


def configured_task(name: str, parameters: Mapping[str, object], where: str = "") -> Task:
    """The task of this name. `where` is the section that names it. Raises DataError."""
    within = f"{where}." if where else ""
    if name not in TASKS:
        raise DataError([Fault(f"{within}task", f"unknown task {show(name)}; {suggestion(name, TASKS, 'the tasks')}")])
    try:
        return make_task(name, parameters)
    except TaskError as error:
        raise DataError([_fault(line, within) for line in str(error).splitlines()]) from error


def _fault(line: str, within: str) -> Fault:
    option, _, message = line.partition(": ")
    if message and option.startswith(_OPTION):
        return Fault(f"{within}parameters.{option.removeprefix(_OPTION)}", message)
    return Fault(f"{within}parameters", line)
