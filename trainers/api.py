"""The verb: train a checkpoint by a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from surgery.errors import Fault
from surgery.wording import show, suggestion
from trainers.config import GrpoConfig, InitConfig, PpoConfig, SftConfig
from trainers.errors import ConfigError, TrainingError
from trainers.launched import rank
from trainers.loading import load
from trainers.progress import Progress, Silence
from trainers.report import Report

KINDS: Mapping[str, type[SftConfig | PpoConfig | GrpoConfig]] = {"sft": SftConfig, "ppo": PpoConfig, "grpo": GrpoConfig}


def load_config(
    trainer: str,
    config: str | Path | Mapping[str, Any],
    *,
    settings: Mapping[str, object] = MappingProxyType({}),
    model: str | Path | None = None,
    out: str | Path | None = None,
) -> SftConfig | PpoConfig | GrpoConfig:
    """The configuration of a trainer (`sft`, `ppo`, `grpo`): a file, a bundled one's name, or a mapping.

    `settings` replaces values by the path of their keys (`optimizer.learning_rate`), `model` and `out` those keys.
    Raises ConfigError with all faults.
    """
    if trainer not in KINDS:
        raise ConfigError([Fault("", f"unknown trainer {show(trainer)}; {suggestion(trainer, KINDS, 'the trainers')}")])
    given = {"model": None if model is None else str(model), "out": None if out is None else str(out)}
    return load(KINDS[trainer], config, settings, given)


def train(
    trainer: str,
    config: str | Path | Mapping[str, Any],
    *,
    settings: Mapping[str, object] = MappingProxyType({}),
    model: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Train a checkpoint: see `load_config` for the configuration, and `trainers.report` for the result.

    With `resume`, an interrupted run goes on where its last state was saved, to the same weights as if it had not been
    interrupted; a finished one gives its report. `overwrite` begins anew where a run lies already.
    Under a launcher of several processes every one of them calls it; `progress` is told in the first alone.
    Raises ConfigError, DataError, TrainingError, RunError, and what opening checkpoints and tasks raises.
    """
    loaded = load_config(trainer, config, settings=settings, model=model, out=out)
    progress = progress if progress is not None and rank() == 0 else Silence()
    try:
        with _installed():
            from evalkit.engines.loading import quiet
            from evalkit.engines.threads import threads_kept

            with quiet(), threads_kept():
                return _run(loaded, resume, overwrite, progress)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        raise TrainingError(
            "the device's memory does not suffice; lower `micro_batch_size`, set `gradient_checkpointing: true`, or "
            "train on more devices (`accelerate launch`)"
        ) from error


def init(
    config: str | Path | Mapping[str, Any],
    *,
    settings: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Make a checkpoint with random weights and the tokenizer of a task: see `trainers.config.InitConfig`.

    `config` and `settings` are as of `load_config`. Gives `out`, and how many `parameters` and `tokens` there are.
    Raises ConfigError, DataError, RunError.
    """
    loaded = load(InitConfig, config, settings, {"out": None if out is None else str(out)})
    with _installed():
        from trainers.initial import make_initial

        return make_initial(loaded)


def export_data(config: SftConfig | PpoConfig | GrpoConfig, out: str | Path) -> dict[str, int]:
    """Write the data that a run would see as files of JSON lines: see `trainers.data.export`."""
    with _installed():
        from trainers.data import export

        return export(config, Path(out))


@contextmanager
def _installed() -> Iterator[None]:
    """One message for what comes with an extra and is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"`surgery train` needs `{error.name}`, which is not installed: pip install 'surgery[train]'"
        ) from error


def _run(config: SftConfig | PpoConfig | GrpoConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    if isinstance(config, SftConfig):
        from trainers.sft_run import run_sft

        return run_sft(config, resume, overwrite, progress)
    if isinstance(config, PpoConfig):
        from trainers.ppo_run import run_ppo

        return run_ppo(config, resume, overwrite, progress)
    from trainers.grpo_run import run_grpo

    return run_grpo(config, resume, overwrite, progress)
