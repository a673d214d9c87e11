"""The verb: try many variants of a model, and choose one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit.errors import EngineError, SweepError, TaskError
from evalkit.evaluation import Evaluation
from evalkit.store import write_json
from evalkit.sweeps.bound import Bound, bind
from evalkit.sweeps.card import add_scores
from evalkit.sweeps.figures import draw_pareto
from evalkit.sweeps.grid import Candidate, expand, spelt
from evalkit.sweeps.loading import load
from evalkit.sweeps.maker import Making
from evalkit.sweeps.progress import Progress, Quiet
from evalkit.sweeps.report import make_report
from evalkit.sweeps.result import SweepResult
from evalkit.sweeps.run import run
from evalkit.sweeps.scoring import evaluations
from evalkit.sweeps.spec import Keep, Sweep
from evalkit.sweeps.words import words
from evalkit.task import Task
from surgery.api import Model, Models
from surgery.errors import Fault
from surgery.page import need_jinja
from surgery.plotting import need_matplotlib
from surgery.unfinished import writing
from surgery.whole_file import write_whole
from surgery.wording import quoted

REPORT = "report.json"
ROWS = "rows.jsonl"
PAGE = "report.html"


def plan_sweep(
    spec: str | Path | Mapping[str, Any],
    models: Models,
    *,
    task: Task | None = None,
    device: str = "cpu",
    **changes: object,
) -> Bound:
    """Everything that `sweep` would do, from the models' headers: candidates with their plans, and the examples.

    `changes` replace keys of the sweep's `evaluation`, `task` its task. Raises any SurgeryError.
    """
    sweep, source = load(spec)
    faults: list[Fault] = []
    candidates: list[Candidate] = []
    asked: list[Evaluation] = []
    bound: dict[str, Model] = {}
    try:
        candidates = expand(sweep, source)
    except SweepError as error:
        faults += error.faults
    try:
        asked = evaluations(sweep, source, changes, task)
    except (TaskError, EngineError) as error:
        faults.append(Fault(source.where(("evaluation",)), str(error)))
    try:
        bound = _bound(sweep, models)
    except SweepError as error:
        faults += error.faults
    if faults:
        raise SweepError(faults)
    return bind(sweep, source, bound, candidates, asked, device)


def sweep(
    spec: str | Path | Mapping[str, Any],
    models: Models,
    out: str | Path,
    *,
    task: Task | None = None,
    keep: Keep | None = None,
    n: int | None = None,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    cache: bool = True,
    disk: int | None = None,
    progress: Progress | None = None,
    comment: Callable[[SweepResult], Sequence[str]] = lambda _: (),
) -> SweepResult:
    """Make every variant of a sweep, score it beside the models, choose one, and keep it in `out`.

    - `spec`: a sweep's file, a bundled one's name, or a mapping; `models` are bound to its roles.
    - `task`, an object, `keep`, `n`, `engine` and `engine_options` replace what the sweep says.
    - `workers`, `memory`, `device`, `cache`: of making, as for `surgery.apply`; `disk` bounds in bytes what
      variants that may still go take there; default: half of what is free. No effect on bytes.
    - `comment` gives more sentences about the result, which follow its own.

    `out` gets `report.json`, `rows.jsonl`, `report.html`, `pareto.png` and `.svg`, every sample in `results`, the kept
    checkpoints in `checkpoints`, and a link `best`. What an earlier run there has made or scored is not done again,
    also where the sweep has grown since; checkpoints that it would not keep go. Raises any SurgeryError.
    """
    need_matplotlib()
    need_jinja()
    making = Making(workers, memory, device, cache, disk)
    bound = plan_sweep(spec, models, task=task, device=device, n=n, engine=engine, engine_options=engine_options)
    place = Path(out)
    rows, entries = run(bound, place, keep or bound.sweep.keep, making, progress or Quiet())
    result = SweepResult(
        name=bound.sweep.name,
        summary=bound.sweep.summary,
        models={role: str(model) for role, model in bound.models.items()},
        start=bound.sweep.start,
        splits=bound.aim.splits,
        measure=bound.aim.measure,
        objective=bound.sweep.objective.model_dump(mode="json"),
        settings=_settings(bound),
        rows=tuple(rows),
        best=next(row.name for row in rows if row.best),
        words=words(rows, entries, bound.aim),
    )
    result = replace(result, words=(*result.words, *comment(result)))
    _write(result, _commands(result, bound, place), place)
    return result


def _bound(sweep: Sweep, models: Models) -> dict[str, Model]:
    """The model for each of the sweep's roles. Raises SweepError when the numbers or the names differ."""
    roles = list(sweep.models)
    expected = f"expected {len(roles)}, for {quoted(roles)}, in this order"
    if isinstance(models, Mapping):
        if set(models) != set(roles):
            raise SweepError([Fault("models", f"found {quoted(models) or 'none'}; {expected}")])
        return {role: models[role] for role in roles}
    found: Sequence[Model] = [models] if isinstance(models, str | Path) else models
    if len(found) != len(roles):
        raise SweepError([Fault("models", f"found {len(found)}; {expected}")])
    return dict(zip(roles, found, strict=True))


def _settings(bound: Bound) -> dict[str, Any]:
    """What the scores depend on, as plain data."""
    first = bound.evaluations[0]
    answers = {
        "attempts": first.attempts,
        "temperature": first.sampling.temperature,
        "max_tokens": first.sampling.max_tokens,
    }
    return {
        "task": first.task.name,
        "parameters": dict(first.task.identity),
        "part": first.part,
        "n": dict(bound.examples),
        "seeds": [evaluation.seed for evaluation in bound.evaluations],
        "engine": first.engine,
        "chat": first.chat,
        **(answers if first.answers else {}),
    }


def _write(result: SweepResult, commands: Sequence[str], out: Path) -> None:
    """The result beside the checkpoints, whose cards get their scores. Raises OutputError, ResultsError."""
    for row in result.rows:
        if row.kept:
            add_scores(out, row, result)
    picture = next(path for path in draw_pareto(result, out) if path.suffix == ".svg")
    lines = [json.dumps(row.json(), ensure_ascii=False, allow_nan=False) for row in result.rows]
    with writing(out):
        write_whole(out / ROWS, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        write_whole(out / PAGE, make_report(result, picture.read_bytes(), commands))
    write_json(out / REPORT, result.json())


def _commands(result: SweepResult, bound: Bound, out: Path) -> list[str]:
    """What makes the winner again, and what checks it."""
    best = result.winner
    work = next((work for work in bound.works if work.name == best.name), None)
    found = []
    if work is not None and work.candidate.typed is not None:
        models = [str(model) for model in work.models.values()]
        settings = [f"--set {shlex.quote(f'{key}={spelt(value)}')}" for key, value in best.parameters.items()]
        words = [shlex.quote(word) for word in (work.candidate.typed, *models)]
        found.append(" ".join(["surgery apply", *words, "OUT", *settings]))
    return [*found, *([f"surgery verify {shlex.quote(str(out / best.kept))}"] if best.kept else [])]
