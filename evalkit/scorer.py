"""Scores models one after the other in one engine, and keeps what is finished."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from evalkit.engines import make_engine
from evalkit.engines.base import Engine, Model
from evalkit.errors import EngineError
from evalkit.evaluation import Evaluation
from evalkit.journal import Journal
from evalkit.models import check_unchanged, complete, open_models
from evalkit.progress import Progress, Silence
from evalkit.rendering import Renderer
from evalkit.room import check_room
from evalkit.run import losses, play
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
    answers: Journal | None
    turns: Journal | None
    losses: Journal | None
    examples: Sequence[Example]

    @property
    def unanswered(self) -> list[Example]:
        return [] if self.answers is None else [e for e in self.examples if _known(Sample, self.answers, e) is None]

    @property
    def unscored(self) -> list[Example]:
        return [] if self.losses is None else [e for e in self.examples if _known(Loss, self.losses, e) is None]

    @property
    def missing(self) -> int:
        return len(self.unanswered) + len(self.unscored)

    @property
    def total(self) -> int:
        return len(self.examples) * ((self.answers is not None) + (self.losses is not None))


class Scorer(Closing):
    """An evaluation, its results' directory, and one engine, which starts with the first thing that is to be done.

    Models may be scored in several calls; the engine goes on. Where several evaluations share an engine, it is given,
    with the `context` that the largest of them needs, and whoever made it ends it. Use as a context manager.
    Raises what `evalkit.evaluate` does.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        out: Path,
        progress: Progress | None = None,
        *,
        engine: Engine | None = None,
        context: int = 0,
    ) -> None:
        self.evaluation = evaluation
        # Draws the examples, and finds out whether they can be asked.
        self._context = max(context, evaluation.context)
        self._out = out
        self._progress = progress or Silence()
        self._held: str | None = None  # the digest of the model in the engine
        self._own = engine is None
        self._engine = engine or make_engine(evaluation.engine, evaluation.options, evaluation.chat_template)
        if evaluation.loss and not self._engine.scores:
            raise EngineError(
                f"the engine `{evaluation.engine}` does not tell the log-probabilities of given answers; leave out "
                "`--loss`, or use `--engine vllm` or `transformers`"
            )
        self.answers = Store(out, evaluation.settings("answers", self._engine))
        self._losses = Store(out, evaluation.settings("losses", self._engine)) if evaluation.loss else None

    def check(self, sources: Sequence[str | Path]) -> None:
        """Raise what is wrong with models, of all that `score` finds out before it asks the first anything."""
        with ExitStack() as stack:
            opened = {model.digest: model for model in open_models(sources, self.evaluation.engine, self._out)}
            for model in opened.values():
                self._check(self._work(stack, model))

    def score(
        self, sources: Sequence[str | Path], progress: Progress | None = None, *, held: str | None = None
    ) -> list[Scored]:
        """Score models, given as directories, hub ids, or a server's names for them.

        All are opened and checked before the first is asked anything. `progress` replaces the scorer's from here on.
        `held` is the digest of what a given engine has loaded already.
        """
        self._progress = progress or self._progress
        self._held = held
        with ExitStack() as stack:
            works: dict[str, _Work] = {}
            named = {}
            for model in open_models(sources, self.evaluation.engine, self._out, self._progress.note):
                if model.digest not in works:  # two names may stand for the same content
                    works[model.digest] = self._work(stack, model)
                named[model.name] = replace(works[model.digest], model=model)
            for work in works.values():
                self._check(work)
            return [self._scored(work) for work in named.values()]

    def recall(self, model: Model) -> Scored | None:
        """What earlier runs have found of a model, whose files may be gone; None unless they have found all."""
        with ExitStack() as stack:
            work = self._work(stack, model)
            return None if work.missing else self._found(work, 0)

    def _work(self, stack: ExitStack, model: Model) -> _Work:
        answers = turns = None
        if self.evaluation.answers:
            answers = stack.enter_context(self.answers.open(model))
            turns = stack.enter_context(self.answers.open_turns(model))
        scored = stack.enter_context(self._losses.open(model)) if self._losses else None
        return _Work(model, answers, turns, scored, self.evaluation.examples)

    def _check(self, work: _Work) -> None:
        """Find out now whether prompts can be rendered and fit, not when other models have been scored for an hour."""
        if not work.missing or work.model.path is None:
            return
        renderer = Renderer(work.model, self.evaluation.chat_template)
        check_room(self.evaluation, renderer, work.unanswered, work.unscored)

    def _scored(self, work: _Work) -> Scored:
        model, progress = work.model, self._progress
        missing, total = work.missing, work.total
        progress.model(model.name, total, total - missing)
        if model.path is None and missing < total:
            progress.note(
                f"{model.name}: what the server answered earlier is used; where it has got other weights under this "
                "name since, choose another `--out`"
            )
        if missing:
            with ExitStack() as merged:
                if model.digest != self._held:
                    self._held = None
                    self._engine.load(merged.enter_context(complete(model, self._out, progress.note)), self._context)
                    self._held = model.digest
                check_unchanged(model, self._out)
                self._answer(work)
                self._score_references(work)
        return self._found(work, missing)

    def _found(self, work: _Work, generated: int) -> Scored:
        samples = [_known(Sample, work.answers, example) for example in work.examples] if work.answers else []
        found = [_known(Loss, work.losses, example) for example in work.examples] if work.losses else []
        return Scored(
            work.model,
            tuple(sample for sample in samples if sample is not None),
            tuple(loss for loss in found if loss is not None),
            generated=generated,
            reused=work.total - generated,
        )

    def _answer(self, work: _Work) -> None:
        if work.answers is None or work.turns is None:
            return
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
        """End the engine, if it is the scorer's own."""
        if self._own:
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
