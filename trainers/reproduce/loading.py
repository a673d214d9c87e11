"""From YAML to a pipeline, with everything that is wrong with it at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.document import read_map, validated
from surgery.errors import RecipeError
from surgery.source import Mistake
from surgery.source import Path as FieldPath
from surgery.wording import show, suggestion
from trainers.errors import ConfigError
from trainers.reproduce.pipeline import SEED, Pipeline, arguments, within

FOLDER = "reproduce"  # of the bundled pipelines, beside the recipes
COMMANDS = ("apply", "diff", "eval", "sweep", "train")  # what a stage may run
_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_-]*")


def load(source: str | Path | Mapping[str, Any]) -> Pipeline:
    """Read and validate a pipeline: a file, the name of a bundled one, or a mapping.

    Raises ConfigError with all faults.
    """
    try:
        read = read_map(source, "pipeline", FOLDER, "the keys `name`, `stages` and `experiments`")
        pipeline = validated(Pipeline, read, _disagreements)
    except RecipeError as error:  # read and validated as recipes are
        raise ConfigError(error.faults) from error
    pipeline._text = read.text
    return pipeline


def _disagreements(data: Mapping[str, Any]) -> list[Mistake]:
    """What is wrong between parts that may be right by themselves; parts of another form are passed over."""
    listed = data.get("stages")
    stages = [each if isinstance(each, dict) else {} for each in listed] if isinstance(listed, list) else []
    files = data.get("files") if isinstance(data.get("files"), dict) else {}
    assert isinstance(files, dict)
    found = [*_twice(stages), *_later(stages)]
    for i, stage in enumerate(stages):
        found += _of_command(stage, ("stages", i))
    experiments = data.get("experiments")
    shapes = data.get("shapes")
    made = [stage["makes"] for stage in stages if isinstance(stage.get("makes"), str)]
    made += [*shapes] if isinstance(shapes, dict) else []
    for i, each in enumerate(experiments if isinstance(experiments, list) else []):
        if isinstance(each, dict):
            found += _of_experiment(each, ("experiments", i), made)
    return found


def _of_command(stage: Mapping[str, Any], path: FieldPath) -> list[Mistake]:
    words = stage.get("run")
    if not isinstance(words, list) or not words:
        return []
    found = []
    if isinstance(words[0], str) and words[0] not in COMMANDS:
        message = f"a stage cannot run {show(words[0])}; {suggestion(words[0], COMMANDS, 'the commands')}"
        found.append(Mistake((*path, "run", 0), message))
    found += [
        Mistake((*path, "run", i), f"unknown variable {show(variable)}; expected `{SEED}`")
        for i, word in enumerate(words)
        for variable in _VARIABLE.findall(str(word))
        if variable != SEED
    ]
    makes = stage.get("makes")
    if isinstance(makes, str) and not any(makes in str(word) for word in words):
        message = f"the command does not name {show(makes)}; expected what it writes, such as its `--out`"
        found.append(Mistake((*path, "makes"), message))
    return found


def _twice(stages: Sequence[Mapping[str, Any]]) -> list[Mistake]:
    """Names that two stages have, and results that lie in each other."""
    found = []
    for i, stage in enumerate(stages):
        for earlier in stages[:i]:
            if isinstance(stage.get("name"), str) and stage.get("name") == earlier.get("name"):
                found.append(Mistake(("stages", i, "name"), f"an earlier stage is called {show(stage['name'])}, too"))
            ours, theirs = stage.get("makes"), earlier.get("makes")
            if isinstance(ours, str) and isinstance(theirs, str) and (within(ours, theirs) or within(theirs, ours)):
                message = f"{show(ours)} and {show(theirs)} of an earlier stage overlap; give each stage its own"
                found.append(Mistake(("stages", i, "makes"), message))
    return found


def _later(stages: Sequence[Mapping[str, Any]]) -> list[Mistake]:
    """Needs that no earlier stage fulfils."""
    found = []
    names = [stage.get("name") for stage in stages]
    for i, stage in enumerate(stages):
        needs = stage.get("needs")
        for j, need in enumerate(needs if isinstance(needs, list) else []):
            if isinstance(need, str) and need not in names[:i]:
                known = suggestion(need, [name for name in names[:i] if isinstance(name, str)], "the stages before it")
                later = "comes later" if need in names else "is no stage"
                found.append(Mistake(("stages", i, "needs", j), f"{show(need)} {later}; {known}"))
        words = stage.get("run")
        for word in arguments(words) if isinstance(words, list) and words else []:
            for other in stages[i + 1 :]:
                if isinstance(other.get("makes"), str) and within(word, other["makes"]):
                    message = f"{show(word)} is made by the stage {show(str(other.get('name')))}, which comes later"
                    found.append(Mistake(("stages", i, "run"), message))
    return found


def _of_experiment(each: Mapping[str, Any], path: FieldPath, made: Sequence[str]) -> list[Mistake]:
    """Names and paths of an experiment that nothing stands behind."""
    models = each.get("models") if isinstance(each.get("models"), dict) else {}
    assert isinstance(models, dict)
    found = [
        mistake
        for key in ("losses", "comparison", "scores")
        if isinstance(each.get(key), str)
        for mistake in _unmade(each[key], (*path, key), made)
    ]
    for name, place in models.items():
        found += _unmade(place, (*path, "models", name), made)
    learned, sweeps = each.get("learned"), each.get("sweeps")
    for name, parent in (learned if isinstance(learned, dict) else {}).items():
        found += _unnamed([name, parent], (*path, "learned", name), models)
    for i, place in enumerate(sweeps if isinstance(sweeps, list) else []):
        found += _unmade(place, (*path, "sweeps", i), made)
    controls = each.get("controls")
    for i, name in enumerate(controls if isinstance(controls, list) else []):
        found += _unnamed([name], (*path, "controls", i), models)
    return found


def _unmade(place: object, path: FieldPath, made: Sequence[str]) -> list[Mistake]:
    if not isinstance(place, str) or any(within(place, each) for each in made):
        return []
    return [Mistake(path, f"no stage makes {show(place)}; {suggestion(place, made, 'they make')}")]


def _unnamed(names: Iterable[object], path: FieldPath, models: Mapping[str, Any]) -> list[Mistake]:
    return [
        Mistake(path, f"{show(name)} is not among `models`; {suggestion(name, models, 'they are')}")
        for name in names
        if isinstance(name, str) and name not in models
    ]
