"""Scores models one after the other in one engine, and keeps what is finished."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from evalkit.engines import make_engine
from evalkit.engines.base import Model
from evalkit.errors import EngineError
from evalkit.evaluation import Evaluation
from evalkit.journal import Journal
from evalkit.models import check_unchanged, open_models
from evalkit.progress import Progress, Silence
from evalkit.rendering import Renderer
from evalkit.run import losses, no_room, play
from evalkit.samples import Loss, Sample
from evalkit.store import Store
from evalkit.summary import Scored
from evalkit.task import Example
from surgery.closing import Closing

Kept = TypeVar("Kept", Sample, Loss)


@dataclass(frozen=True)
class _Work:
    """A model, and where its results go."""

    model: Model
    answers: Journal
    turns: Journal
    losses: Journal | None
    examples: Sequence[Example]

    @property
    def unanswered(self) -> list[Example]:
        return [example for example in self.examples if _known(Sample, self.answers, example) is None]

    @property
    def unscored(self) -> list[Example]:
        return [] if self.losses is None else [e for e in self.examples if _known(Loss, self.losses, e) is None]

    @property
    def missing(self) -> int:
        return len(self.unanswered) + len(self.unscored)


class Scorer(Closing):
    """An evaluation, its results' directory, and one engine, which starts with the first thing that is to be done.

    Models may be scored in several calls; the engine goes on. Use as a context manager. Raises what
    `evalkit.evaluate` does.
    """

    def __init__(self, evaluation: Evaluation, out: Path, progress: Progress | None = None) -> None:
        self.evaluation = evaluation
        self._context = evaluation.context  # draws the examples, and finds out whether they can be asked
        self._out = out
        self._progress = progress or Silence()
        self._engine = make_engine(evaluation.engine, evaluation.options, evaluation.chat_template)
        if evaluation.loss and not self._engine.scores:
            raise EngineError(
                f"the engine `{evaluation.engine}` does not tell the log-probabilities of given answers; leave out "
                "`--loss`, or use `--engine vllm` or `transformers`"
            )
        self.answers = Store(out, evaluation.settings("answers", self._engine))
        self._losses = Store(out, evaluation.settings("losses", self._engine)) if evaluation.loss else None

    def score(self, sources: Sequence[str | Path]) -> list[Scored]:
        """Score models, given as directories, hub ids, or a server's names for them.

        All are opened and checked before the first is asked anything.
        """
        with ExitStack() as stack:
            works: dict[str, _Work] = {}
            named = {}
            for model in open_models(sources, self.evaluation.engine, self._out):
                if model.digest not in works:  # two names may stand for the same content
                    works[model.digest] = self._work(stack, model)
                named[model.name] = replace(works[model.digest], model=model)
            for work in works.values():
                self._check(work)
            return [self._scored(work) for work in named.values()]

    def _work(self, stack: ExitStack, model: Model) -> _Work:
        answers = stack.enter_context(self.answers.open(model))
        turns = stack.enter_context(self.answers.open_turns(model))
        scored = stack.enter_context(self._losses.open(model)) if self._losses else None
        return _Work(model, answers, turns, scored, self.evaluation.examples)

    def _check(self, work: _Work) -> None:
        """Find out now whether prompts can be rendered and fit, not when other models have been scored for an hour."""
        if not work.missing or work.model.path is None:
            return
        asking, sampling = self.evaluation.asking, self.evaluation.sampling
        renderer = Renderer(work.model, self.evaluation.chat_template)
        for example in work.unanswered:
            tokens = len(renderer.tokens(asking.prompt(example)))
            if not renderer.room(tokens, sampling.max_tokens):
                raise no_room(work.model.name, example, tokens, sampling.max_tokens)
        for example in work.unscored:
            prompt, answer = renderer.pair(asking.prompt(example), asking.task.reference(example.data), end=True)
            if not renderer.room(len(prompt), len(answer)):
                raise no_room(work.model.name, example, len(prompt), len(answer))

    def _scored(self, work: _Work) -> Scored:
        model, progress = work.model, self._progress
        missing = work.missing
        total = len(work.examples) * (1 if work.losses is None else 2)
        progress.model(model.name, total, total - missing)
        if model.path is None and missing < total:
            progress.note(
                f"{model.name}: what the server answered earlier is used; where it has got other weights under this "
                "name since, choose another `--out`"
            )
        if missing:
            self._engine.load(model, self._context)
            check_unchanged(model, self._out)
            self._answer(work)
            self._score_references(work)
        samples = [_known(Sample, work.answers, example) for example in work.examples]
        found = [_known(Loss, work.losses, example) for example in work.examples] if work.losses else []
        return Scored(
            model,
            tuple(sample for sample in samples if sample is not None),
            tuple(loss for loss in found if loss is not None),
            generated=missing,
            reused=total - missing,
        )

    def _answer(self, work: _Work) -> None:
        evaluation = self.evaluation
        for sample in play(
            evaluation.asking, work.unanswered, self._engine, work.model.name,
            evaluation.sampling, evaluation.attempts, evaluation.seed, work.turns, self._progress,
        ):  # fmt: skip
            work.answers.put(f"{sample.split}/{sample.index}", sample.json())
            self._progress.finished()

    def _score_references(self, work: _Work) -> None:
        if work.losses is None or not work.unscored:
            return
        for loss in losses(self.evaluation.asking, work.unscored, self._engine, work.model.name):
            work.losses.put(f"{loss.split}/{loss.index}", loss.json())
            self._progress.answered(loss.tokens)
            self._progress.finished()

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def _id(example: Example) -> str:
    return f"{example.split}/{example.index}"


def _known(kind: type[Kept], journal: Journal, example: Example) -> Kept | None:
    """What is kept of an example; a line that is of another form, or of another example, is as if not written."""
    row = journal.get(_id(example))
    if row is None:
        return None
    try:
        found = kind.from_json(row)
    except (KeyError, TypeError):
        return None
    return found if found.key == example.key else None
