"""A run of supervised fine-tuning, from its configuration to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.engines.base import Sampling
from evalkit.run import Asking
from surgery.errors import Fault
from trainers import data
from trainers.actors import Autocast, LiveActor
from trainers.batches import accumulation
from trainers.config import Accuracy, SftConfig
from trainers.errors import DataError
from trainers.measure import Problems
from trainers.opening import Opened
from trainers.parent import check_vocabulary, load_network
from trainers.progress import Progress
from trainers.records import Record
from trainers.report import Report
from trainers.sequences import Encoded, encode_all

_NOTHING_HELD_OUT = (
    "no losses were measured on held-out data: name some in `held_out.id` and `held_out.ood` to find the checkpoint "
    "that is best out of distribution"
)


def run_sft(config: SftConfig, resume: bool, overwrite: bool, progress: Progress) -> Report:
    """Train as the configuration says. Whatever can be found wrong before the first step is."""
    opened = Opened("sft", config)
    batch = accumulation(
        "batch_size", str(config.batch_size), config.batch_size, config.micro_batch_size, opened.processes
    )
    records = data.training_records(config.data, config.seed)
    held_out_records = data.held_out_records(config)
    data.check_apart(records, held_out_records)
    problems = _problems(config, records)
    learned = encode_all(opened.renderer, records, config.chat, config.max_length, "data")
    held_out = {
        name: encode_all(opened.renderer, found, config.chat, config.max_length, f"held_out.{name}")
        for name, found in held_out_records.items()
    }
    about = {
        "seed": config.seed,
        "records": len(records),
        "digest": data.digest(records),
        "held_out": {name: data.digest(found) for name, found in held_out_records.items()},
    }
    with opened.session(resume, overwrite, about) as session:
        if session.finished:
            return session.report()
        from trainers.sft import fine_tune

        network = load_network(opened.parent, config)
        check_vocabulary(network, config.model, _largest(learned, *held_out.values()))
        recorder = opened.recorder(session, about)

        def accuracy(network: Any, autocast: Autocast, step: int) -> Mapping[str, float]:
            """How many of the held-out problems the network solves as it is."""
            actor = LiveActor(network, opened.renderer, session, autocast)
            return recorder.scores(step, {name: actor.samples(found) for name, found in problems.items()})

        steps = fine_tune(
            config,
            batch,
            network,
            opened.renderer,
            learned,
            held_out,
            recorder,
            progress,
            accuracy if problems else None,
        )
        note = None if held_out else _NOTHING_HELD_OUT
        return recorder.finish(steps, note, config.data.task)


def _problems(config: SftConfig, learned: Sequence[Record]) -> dict[str, Problems]:
    """The problems of the held-out data that are a task's; none where accuracy is not wanted."""
    wanted: Accuracy | None = config.accuracy
    if wanted is None:
        return {}
    found = {}
    for name, (task, examples) in data.accuracy_problems(config, learned).items():
        sampling = Sampling(wanted.temperature, wanted.max_tokens or task.max_tokens)
        found[name] = Problems(Asking(task, {}, config.chat), examples, sampling, wanted.attempts, config.seed)
    if not found:
        message = (
            "found held-out data from files alone, which have no grades; hold out a task's problems, or leave it out"
        )
        raise DataError([Fault("accuracy", message)])
    return found


def _largest(*sequences: list[Encoded]) -> int:
    return max(max(sequence.ids) for found in sequences for sequence in found)
