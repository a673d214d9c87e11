"""The verb: score checkpoints on a task, and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.engines import default_engine, make_engine
from evalkit.engines.base import Sampling
from evalkit.errors import TaskError
from evalkit.evaluation import Evaluation
from evalkit.progress import Progress, Silence
from evalkit.prompt_template import load_prompt
from evalkit.scorer import Scorer
from evalkit.store import Store, write_json
from evalkit.summary import Report, Scored, summarise
from evalkit.task import TEST, Task
from evalkit.tasks import make_task

OUT = "results"
HARNESS = "lm_eval:"  # begins the names of lm-evaluation-harness's tasks
REPORT = "report.json"
SUMMARY = "summary.json"


def evaluate(
    task: str | Task,
    models: Sequence[str | Path],
    out: str | Path = OUT,
    *,
    settings: Mapping[str, object] | None = None,
    splits: Sequence[str] = (),
    n: int | None = None,
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

    - `task`, `settings`: the name of a task and its parameters, or a task of your own. A name `lm_eval:NAME` leaves
      prompts and metrics to lm-evaluation-harness: see `evaluate_harness`.
    - `models`: directories or hub ids, where each with adapters (`MODEL+ADAPTER`) is merged in `out/models` while it is
      scored; for the engine `openai:URL` the names that the server gives its models.
    - `n` examples of each of `splits` are drawn by `seed` from `part` (see `evalkit.task.PARTS`).
    - `temperature` 0 is greedy; `max_tokens` is of one answer. What is not given here is as the task says.
    - `prompt`: a Jinja file that replaces the task's question; `chat` False sends plain text; `chat_template` is the
      text of a template that replaces every model's.
    - `loss`: score the reference answers, too.
    - `engine`: `vllm`, `transformers` or `openai:URL`; default: vLLM where it is installed.

    What an earlier run has finished under the same settings, for a checkpoint of the same content, is not done again.
    Raises TaskError, EngineError, ResultsError, CheckpointError, and for adapters what `surgery.apply` raises.
    """
    if isinstance(task, str) and task.startswith(HARNESS):
        own = {"splits": splits, "attempts": attempts, "temperature": temperature, "max_tokens": max_tokens}
        _check_harness(task, {**own, "prompt": prompt, "loss": loss, "part": part != TEST})
        return evaluate_harness(
            task.removeprefix(HARNESS), models, out, settings=settings, n=n, seed=seed, chat=chat,
            chat_template=chat_template, engine=engine, engine_options=engine_options, progress=progress,
        )  # fmt: skip
    made = make_task(task, settings or {}) if isinstance(task, str) else task
    evaluation = Evaluation(
        task=made,
        engine=engine or default_engine(),
        splits=tuple(splits) or made.scored,
        options=engine_options or {},
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
        return _report(scorer.answers, scorer.score(models))


def evaluate_harness(
    name: str,
    models: Sequence[str | Path],
    out: str | Path = OUT,
    *,
    settings: Mapping[str, object] | None = None,
    n: int | None = None,
    seed: int = 0,
    chat: bool = True,
    chat_template: str | None = None,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score every model on a task, a group or a task file of lm-evaluation-harness, in the same engine as our tasks.

    `n` takes that many documents of each task (default: all), `settings` may hold `fewshot`, the number of
    examples. Everything else, and what is raised, is as for `evaluate`.
    """
    from evalkit.harness import Harness
    from evalkit.harness_scorer import score_harness

    fewshot = _fewshot(settings or {})
    spec = engine or default_engine()
    with make_engine(spec, engine_options or {}, chat_template) as made:
        harness = Harness(name, limit=n, seed=seed, chat=chat, fewshot=fewshot)
        store, scored = score_harness(harness, made, spec, chat_template, models, Path(out), progress or Silence())
        return _report(store, scored)


def _report(store: Store, scored: Sequence[Scored]) -> Report:
    """The report, written beside the samples: what each model did, and how they compare."""
    report = summarise(store.settings.task, store.settings.json(), scored)
    content = report.json()
    for one, row in zip(scored, content["models"], strict=True):
        write_json(store.place(one.model) / SUMMARY, {"settings": content["settings"], **row})
    write_json(store.directory / REPORT, content)
    return report


def _check_harness(task: str, given: Mapping[str, object]) -> None:
    """Refuse what has no meaning there, rather than ignore it. Raises TaskError."""
    for name, value in given.items():
        if value not in (None, False, 0.0, ()):
            raise TaskError(f"`{name}` has no meaning for `{task}`: the harness's task decides that; leave it out")


def _fewshot(settings: Mapping[str, object]) -> int | None:
    """The one setting of the harness's tasks. Raises TaskError."""
    for name, value in settings.items():
        if name != "fewshot" or not str(value).isdecimal():
            raise TaskError(f"--set {name}={value}: for tasks of lm-evaluation-harness expected `fewshot=NUMBER`")
    value = settings.get("fewshot")
    return None if value is None else int(str(value))
