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
import logging
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from evalkit.engines.base import Engine
from evalkit.errors import TaskError, first_line
from evalkit.summary import Metric
from surgery.errors import SurgeryError
from surgery.wording import LISTED, quoted, show

if TYPE_CHECKING:
    from evalkit.harness_model import Answers

# The harness's own seeds: with the seed 0 the documents and few-shot examples are those of published results.
RANDOM_SEED = 0
FEWSHOT_SEED = 1234
MAX_SEED = 2**32 - 1  # what NumPy takes

BOOTSTRAP = 1_000  # resamples for the standard errors that have no formula; the harness's 100,000 take minutes

_GROUP = re.compile(r"""^group:\s*["']?([^\s"'#]+)""", re.MULTILINE)


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
    examples. Raises TaskError for a seed that NumPy does not take, and where the harness is not installed, does not
    know the name, or cannot have the data.
    """

    def __init__(
        self, name: str, *, limit: int | None = None, seed: int = 0, chat: bool = False, fewshot: int | None = None
    ) -> None:
        if not 0 <= seed <= MAX_SEED:
            raise TaskError(f"`lm_eval:{name}`: found the seed {seed}, expected 0 to 2**32-1; give another `--seed`")
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
        """What the metrics depend on besides model and engine, as plain data.

        Not `limit`: requests are kept under their own texts, so that more documents ask only for what is new.
        """
        tasks = self._loaded["tasks"]
        path = _path(self.name)
        return {
            "fewshot": {name: task.get_config("num_fewshot") for name, task in tasks.items()},
            "tasks": {name: str(task.VERSION) for name, task in tasks.items()},
            "file": blake3(path.read_bytes()).hexdigest() if path.is_file() else None,
            "lm_eval": version("lm_eval"),
        }

    def run(self, engine: Engine, journal: Answers) -> Outcome:
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
                raise TaskError(f"`lm_eval:{self.name}` fails: {first_line(error)}") from error
        metrics = tuple(metric for name in results["results"] for metric in _metrics(name, results))
        return Outcome(metrics, model.generated, model.reused, model.no_room)


def _load(name: str) -> dict[str, Any]:
    """Tasks and groups of a name or a file. Raises TaskError."""
    from lm_eval.tasks import TaskManager

    path = _path(name)
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise TaskError(f"there is no task file `{path}`; give a file, or the name of a task of lm-evaluation-harness")
    try:
        group = _group(path) if is_file else None
        if is_file and group is None:
            # Looking through the harness's own 14,000 tasks takes ten seconds; a file of one task does without.
            return dict(TaskManager(include_defaults=False).load(str(path)))
        manager = TaskManager(include_path=None if group is None else path.parent)
        known = group or name
        if known not in manager.task_index:
            raise TaskError(f"lm-evaluation-harness has no task {show(known)}; {_nearest(known, manager.all_tasks)}")
        return dict(manager.load(known))
    except SurgeryError:
        raise
    except Exception as error:  # the hub, data sets' own code and YAML: each raises its own
        raise TaskError(
            f"`lm_eval:{name}` cannot be loaded: {first_line(error)}; its data come from the Hugging Face hub or the "
            "files that it names: where there is no network, load it once where there is, and bring the cache "
            "(`HF_HOME`)"
        ) from error


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser raises where there is no such user)


def _group(path: Path) -> str | None:
    """The name of the group that a file defines, whose members may be files beside it or the harness's own tasks."""
    found = _GROUP.search(path.read_text(encoding="utf-8", errors="replace"))
    return found and found[1]


def _nearest(name: str, known: list[str]) -> str:
    """The names that an unknown one resembles. All are compared: the house's own search stops at fifty."""
    import difflib

    near = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.6)
    near = near or [each for each in known if name and name in each][:LISTED]
    return f"did you mean {quoted(near)}?" if near else "`lm_eval ls tasks` lists all"


def _check(name: str, task: Any) -> None:
    """Raise TaskError for a task that is not for text models, or runs what models write."""
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"`lm_eval:{name}` needs images or sound, which no engine here takes; choose a task of texts")
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(
            f"`lm_eval:{name}` runs code that the model writes, which is not done here; choose another task"
        )


def _metrics(name: str, results: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics of a task or group in its own order, with each document's score where that is a number."""
    row = results["results"][name]
    samples = results["samples"].get(name, [])
    better = results["higher_is_better"].get(name) or {}
    for key, value in row.items():
        metric, comma, filter_ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = row.get(f"{metric}_stderr,{filter_}")
        scores = {
            str(sample["doc_id"]): float(sample[metric])
            for sample in samples
            if sample["filter"] == filter_ and _is_number(sample.get(metric))
        }
        yield Metric(
            task=name,
            name=metric if filter_ == "none" else f"{metric} ({filter_})",
            value=float(value),
            stderr=float(stderr) if _is_number(stderr) else None,
            n=int(row.get("sample_count", {}).get(key, row["sample_len"])),
            higher_is_better=better.get(metric) is not False,
            per_document=scores,
        )


def _is_number(value: object) -> bool:
    """Whether a value is one real number: Python's or NumPy's, a truth value too."""
    return isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the harness logs, prints, warns of and draws, and without the processes that it would fork."""
    import datasets
    import tqdm  # type: ignore[import-untyped]

    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, verbosity, init = logger.level, datasets.logging.get_verbosity(), tqdm.tqdm.__init__
    serial = os.environ.get("DISABLE_MULTIPROC")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        datasets.logging.set_verbosity(logging.CRITICAL)
        datasets.disable_progress_bars()
        # The bars are made inside the harness, which has no option for them.
        tqdm.tqdm.__init__ = functools.partialmethod(init, disable=True)
        # A standard error is resampled in a pool of forks, which a process that holds a GPU does not survive.
        os.environ["DISABLE_MULTIPROC"] = "1"
        try:
            yield
        finally:
            logger.setLevel(level)
            datasets.logging.set_verbosity(verbosity)
            if not bars:
                datasets.enable_progress_bars()
            tqdm.tqdm.__init__ = init
            if serial is None:
                del os.environ["DISABLE_MULTIPROC"]
            else:
                os.environ["DISABLE_MULTIPROC"] = serial


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """With the random numbers of the process as the harness begins with; afterwards they go on as before."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED + seed)
    np.random.seed((FEWSHOT_SEED + seed) % (MAX_SEED + 1))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
