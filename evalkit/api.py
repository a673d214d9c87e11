"""The verb: score checkpoints on a task, and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.engines import default_engine
from evalkit.engines.base import Sampling
from evalkit.evaluation import EPISODES, SPLITS, Evaluation
from evalkit.progress import Progress
from evalkit.prompt_template import load_prompt
from evalkit.scorer import Scorer
from evalkit.store import write_json
from evalkit.summary import Report, summarise
from evalkit.task import TEST, Task
from evalkit.tasks import make_task

OUT = "results"
REPORT = "report.json"
SUMMARY = "summary.json"


def evaluate(
    task: str | Task,
    models: Sequence[str | Path],
    out: str | Path = OUT,
    *,
    settings: Mapping[str, object] | None = None,
    splits: Sequence[str] = SPLITS,
    n: int = EPISODES,
    seed: int = 0,
    part: str = TEST,
    attempts: int | None = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    prompt: str | Path | None = None,
    chat: bool = True,
    chat_template: str | None = None,
    loss: bool = False,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score every model on the same examples, keep every sample under `out`, and compare the models in pairs.

    - `task`, `settings`: the name of a task and its parameters, or a task of your own.
    - `models`: directories or hub ids; for the engine `openai:URL` the names that the server gives its models.
    - `n` examples of each of `splits` are drawn by `seed` from `part` (see `evalkit.task.PARTS`).
    - `attempts` and `max_tokens` (of one answer) default to what the task says; `temperature` 0 is greedy.
    - `prompt`: a Jinja file that replaces the task's question; `chat` False sends plain text; `chat_template` is the
      text of a template that replaces every model's.
    - `loss`: score the reference answers, too.
    - `engine`: `vllm`, `transformers` or `openai:URL`; default: vLLM where it is installed.

    What an earlier run has finished under the same settings, for a checkpoint of the same content, is not done again.
    Raises TaskError, EngineError, ResultsError, CheckpointError.
    """
    made = make_task(task, settings or {}) if isinstance(task, str) else task
    evaluation = Evaluation(
        task=made,
        engine=engine or default_engine(),
        options=engine_options or {},
        splits=tuple(splits),
        n=n,
        seed=seed,
        part=part,
        attempts=made.attempts if attempts is None else attempts,
        sampling=Sampling(temperature, made.max_tokens if max_tokens is None else max_tokens),
        template=None if prompt is None else load_prompt(Path(prompt)),
        chat=chat,
        chat_template=chat_template,
        loss=loss,
    )
    with Scorer(evaluation, Path(out), progress) as scorer:
        scored = scorer.score(models)
        report = summarise(made.name, scorer.answers.settings.json(), scored)
        content = report.json()
        for one, row in zip(scored, content["models"], strict=True):
            write_json(scorer.answers.place(one.model) / SUMMARY, {"settings": content["settings"], **row})
        write_json(scorer.answers.directory / REPORT, content)
    return report
