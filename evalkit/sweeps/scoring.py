"""Scores checkpoints under every seed of a sweep's evaluation, in one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evalkit.engines import default_engine, make_engine
from evalkit.engines.base import Model, Sampling
from evalkit.errors import EngineError, TaskError
from evalkit.evaluation import Evaluation
from evalkit.progress import Progress
from evalkit.prompt_template import PromptTemplate, load_prompt
from evalkit.scorer import Scorer
from evalkit.summary import Scored
from evalkit.sweeps.loading import beside
from evalkit.sweeps.spec import Asked, Sweep
from evalkit.task import Task
from evalkit.tasks import TASKS, make_task
from surgery.closing import Closing
from surgery.source import Source
from surgery.wording import show, suggestion

_STRIDE = 1_000_000_000  # between the examples of two seeds: the same index under both is not the same example
_SERVER = "openai:"


def evaluations(
    sweep: Sweep, source: Source, changes: Mapping[str, object], own: Task | None = None
) -> list[Evaluation]:
    """One evaluation for each seed, its examples drawn; files are looked for beside the sweep's own first.

    `changes` replace keys of the sweep's `evaluation`, where they are not None; `own` is a task in place of its task.
    Another engine takes none of the sweep's engine options. Raises TaskError and EngineError.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if given.get("engine") not in (None, sweep.evaluation.engine):
        given = {"engine_options": {}, **given}
    asked = sweep.evaluation.model_copy(update=given)
    engine = _engine(asked.engine or default_engine())
    task = own or _task(asked)
    template = _template(asked.chat_template, source)
    found = [
        Evaluation(
            task=task,
            engine=engine,
            splits=tuple(asked.splits) or task.scored,
            options=asked.engine_options,
            n=asked.n,
            seed=seed,
            part=asked.part,
            attempts=task.attempts if asked.attempts is None else asked.attempts,
            sampling=Sampling(asked.temperature, task.max_tokens if asked.max_tokens is None else asked.max_tokens),
            template=_prompt(asked.prompt, source),
            chat=asked.chat,
            chat_template=template,
            loss=sweep.loss,
            answers=not sweep.loss,
        )
        for seed in asked.seeds
    ]
    for evaluation in found:
        _ = evaluation.context  # draws the examples and puts the questions, which finds out what is wrong with them
    make_engine(engine, asked.engine_options, template).close()  # made without work: what is wrong with its options
    return found


class Scoring(Closing):
    """Use as a context manager. Raises what `evalkit.evaluate` does; writes nothing until something is scored."""

    def __init__(self, evaluations: Sequence[Evaluation], out: Path) -> None:
        first = evaluations[0]
        context = max(evaluation.context for evaluation in evaluations)
        self._engine = make_engine(first.engine, first.options, first.chat_template)
        self._scorers = [Scorer(each, out, engine=self._engine, context=context) for each in evaluations]
        self._held: str | None = None  # the digest of what the engine holds

    def check(self, paths: Sequence[str | Path]) -> None:
        """Find out whether all of these can be scored, before one of them is."""
        for scorer in self._scorers:
            scorer.check(paths)

    def score(self, name: str, path: str | Path, progress: Progress) -> Scored:
        """What a checkpoint does; what is known of it already is not done again."""
        found = []
        for scorer in self._scorers:
            (scored,) = scorer.score([path], progress, held=self._held)
            if scored.generated:
                self._held = scored.model.digest
            found.append(scored)
        return _merged(name, found)

    def recall(self, name: str, digest: str) -> Scored | None:
        """What a checkpoint did, which need not exist any more; None where something is not known."""
        found = [scorer.recall(Model(name, digest, None)) for scorer in self._scorers]
        known = [scored for scored in found if scored is not None]
        return _merged(name, known) if len(known) == len(found) else None

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def _merged(name: str, found: Sequence[Scored]) -> Scored:
    """The examples of all seeds together, under the name of the row."""
    return replace(
        found[0],
        model=replace(found[0].model, name=name),
        samples=tuple(
            replace(sample, index=i * _STRIDE + sample.index) for i, one in enumerate(found) for sample in one.samples
        ),
        losses=tuple(
            replace(loss, index=i * _STRIDE + loss.index) for i, one in enumerate(found) for loss in one.losses
        ),
        generated=sum(one.generated for one in found),
        reused=sum(one.reused for one in found),
    )


def _engine(name: str) -> str:
    if name.startswith(_SERVER):
        raise EngineError(
            f"found the engine {show(name)}; a server cannot be given variants as they are made: use `vllm` or "
            "`transformers`"
        )
    return name


def _task(asked: Asked) -> Task:
    if asked.task not in TASKS:
        if asked.task.startswith("lm_eval:"):
            raise TaskError(
                f"found the task {show(asked.task)}; a sweep chooses on one half of a task's examples and reports on "
                "the other, which needs a task of ours: score the winner on others with `surgery eval`"
            )
        raise TaskError(f"unknown task {show(asked.task)}; {suggestion(asked.task, TASKS, 'the tasks')}")
    return make_task(asked.task, asked.set)


def _prompt(name: str | None, source: Source) -> PromptTemplate | None:
    return None if name is None else load_prompt(beside(name, source) or Path(name))


def _template(name: str | None, source: Source) -> str | None:
    if name is None:
        return None
    path = beside(name, source)
    if path is None:
        raise TaskError(f"found no file {show(name)} for `chat_template`; name one, or leave the key out")
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read the chat template `{path}`: {error}; name a file of UTF-8 text") from error
