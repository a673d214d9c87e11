"""Tasks of lm-evaluation-harness (0.4.13 and later) on our engines: `lm_eval:arc_easy`, `lm_eval:my/task.yaml`.

The harness brings documents, prompts and metrics; an `LM` object of ours answers its requests, so that one engine
serves both. As there, few-shot examples are turns of a conversation when chat is on, and a context's trailing spaces
belong to what is scored. A task file may name Python functions beside it, which then run: use files that you trust.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3

from evalkit.engines.base import Engine, Prompt, Request, Sampling
from evalkit.errors import EngineError, TaskError
from evalkit.summary import Metric
from surgery.errors import SurgeryError
from surgery.wording import quoted, show

# The harness's own seeds: with the seed 0 the documents and few-shot examples are those of published results.
RANDOM_SEED = 0
FEWSHOT_SEED = 1234

MAX_TOKENS = 256  # of an answer, where a task does not say: the harness's own default
BOOTSTRAP = 1_000  # resamples for the standard errors that have no formula; the harness's 100,000 take minutes

_CHAT = "\x00messages:"  # begins a text that stands for messages; no prompt holds the character
_SAMPLED = frozenset({"top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"})
_NEUTRAL = {"top_p": (1, 1.0), "top_k": (0, -1), "min_p": (0, 0.0), "repetition_penalty": (1, 1.0)}


class Journal(Protocol):
    """Keeps answers under names, so that a killed run goes on: `evalkit.journal.Journal`, or a test's."""

    def get(self, name: str) -> dict[str, Any] | None:
        """What was put under a name, or None."""

    def put(self, name: str, row: Mapping[str, Any]) -> None:
        """Keep a row of plain data."""


@dataclass(frozen=True)
class Outcome:
    """A model's metrics; of its requests, how many were answered anew, and how many had no room in the context.

    The first metric of each task is its main one. Metrics of groups have no scores by document.
    """

    metrics: tuple[Metric, ...]
    generated: int
    reused: int
    no_room: int


class Harness:
    """A task, a group or a tag of the harness, or a task file, with its documents loaded; scores any number of models.

    `limit` takes that many documents of each task from its beginning, `fewshot` replaces the task's own number of
    examples. Raises TaskError where the harness is not installed, does not know the name, or cannot have the data.
    """

    def __init__(
        self, name: str, *, limit: int | None = None, seed: int = 0, chat: bool = False, fewshot: int | None = None
    ) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise TaskError(
                f"`lm_eval:{name}` needs lm-evaluation-harness, which is not installed: pip install 'surgery[lm-eval]'"
            )
        self.name, self.limit, self.seed, self.chat, self.fewshot = name, limit, seed, chat, fewshot
        with _quiet(), _seeded(seed):
            self._loaded = _load(name)
        for task_name, task in self._loaded["tasks"].items():
            _check(task_name, task)
            if fewshot is not None or task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", fewshot or 0)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the metrics depend on besides model and engine, as plain data. A request is kept under its own text."""
        tasks = self._loaded["tasks"]
        path = Path(self.name).expanduser()
        return {
            "limit": self.limit,
            "fewshot": {name: task.get_config("num_fewshot") for name, task in tasks.items()},
            "tasks": {name: str(task.VERSION) for name, task in tasks.items()},
            "file": blake3(path.read_bytes()).hexdigest() if path.is_file() else None,
            "lm_eval": version("lm_eval"),
        }

    def run(self, engine: Engine, journal: Journal) -> Outcome:
        """Score the model that the engine holds; whatever the journal has is not asked again.

        Raises EngineError, and TaskError where a task fails on the model's answers.
        """
        from lm_eval.evaluator import evaluate

        from evalkit.harness_model import HarnessModel

        model = HarnessModel(engine, journal, self.seed)
        with _quiet(), _seeded(self.seed):
            for task in self._loaded["tasks"].values():
                task.set_fewshot_seed(seed=FEWSHOT_SEED + self.seed)
            try:
                results = evaluate(
                    lm=model,
                    task_dict=self._loaded,
                    limit=self.limit,
                    bootstrap_iters=BOOTSTRAP,
                    apply_chat_template=self.chat,
                    fewshot_as_multiturn=self.chat,
                )
            except SurgeryError:
                raise
            except Exception as error:  # tasks are programs: they raise what they like
                raise TaskError(f"`lm_eval:{self.name}` fails: {_short(error)}") from error
        metrics = tuple(metric for name in results["results"] for metric in _metrics(name, results))
        return Outcome(metrics, model.generated, model.reused, model.no_room)
