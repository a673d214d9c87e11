"""Scores models on a task of lm-evaluation-harness, in one engine, and keeps every answered request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from evalkit.engines.base import Completion, Engine, Model, Prompt, Request, Sampling, TokenScore
from evalkit.harness import Harness
from evalkit.models import check_unchanged, complete, open_models
from evalkit.progress import Progress
from evalkit.rendering import Renderer
from evalkit.settings import Settings
from evalkit.store import Store
from evalkit.summary import Scored

CONTEXT = 8192  # tokens; the harness's prompts are known only once it makes them, few-shot ones are long


class OnDemand(Engine):
    """An engine that takes its model when the first request comes: what is all in the journal starts nothing."""

    name: ClassVar[str] = "on demand"

    def __init__(self, engine: Engine, model: Model, out: Path, progress: Progress) -> None:
        self._engine, self._model, self._out, self._progress = engine, model, out, progress
        self._loaded = False
        self._files = ExitStack()  # of a model with adapters, for as long as it is asked

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the engine."""
        return self._engine.identity

    def versions(self) -> Mapping[str, str]:
        """Those of the engine."""
        return self._engine.versions()

    def load(self, model: Model, context: int) -> None:
        """Make another model the one that answers."""
        self._engine.load(model, context)
        self._loaded = True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """The engine's answers."""
        for number, completion in self._ready(len(requests)).generate(requests, sampling):
            self._progress.answered(completion.tokens)
            self._progress.finished()
            yield number, completion

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        """The engine's scores."""
        for number, scores in self._ready(len(prompts)).score(prompts, end):
            self._progress.answered(len(scores))
            self._progress.finished()
            yield number, scores

    def close(self) -> None:
        """Give up the model's files; the engine is its owner's."""
        self._files.close()

    def _ready(self, requests: int) -> Engine:
        if requests:
            self._progress.model(self._model.name, requests, 0)
        if not self._loaded:
            self.load(self._files.enter_context(complete(self._model, self._out, self._progress.note)), CONTEXT)
            check_unchanged(self._model, self._out)
        return self._engine


def score_harness(
    harness: Harness, engine: Engine, spec: str, chat_template: str | None,
    sources: Sequence[str | Path], out: Path, progress: Progress,
) -> tuple[Store, list[Scored]]:  # fmt: skip
    """The metrics of every model, and where they are kept. `spec` is what `engine` was made from.

    Raises TaskError, EngineError, ResultsError, CheckpointError.
    """
    settings = Settings(
        kind="requests", task=f"lm_eval:{harness.name}", task_version=1, parameters=harness.identity, part="",
        seed=harness.seed, engine=spec, engine_options=dict(engine.identity), versions=dict(engine.versions()),
        chat=harness.chat, chat_template=chat_template,
    )  # fmt: skip
    store = Store(out, settings)
    models = open_models(sources, spec, out, progress.note)
    for model in models:
        if model.path is not None and not store.place(model).exists():  # unknown: find out now whether it can be asked
            Renderer(model, chat_template).tokens(({"role": "user", "content": "?"},) if harness.chat else "?")
    scored = []
    for model in models:
        with store.open(model) as journal, OnDemand(engine, model, out, progress) as asked:
            outcome = harness.run(asked, journal)
        if outcome.no_room:
            progress.note(f"{model.name}: {outcome.no_room:,} prompts had no room in the context and count as wrong")
        scored.append(Scored(model, generated=outcome.generated, reused=outcome.reused, metrics=outcome.metrics))
    return store, scored
