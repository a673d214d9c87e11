"""What a stage takes, from the plans of what it does and the formulas of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import surgery
from evalkit.sweeps.sweep import plan_sweep
from surgery.analysis.diff import LIBRARIES_BYTES, make_matching
from surgery.checkpoint import open_checkpoint
from surgery.plan import INTERPRETER_BYTES, Plan
from surgery.quantity import Quantity
from surgery.select import Select
from surgery.workers import default_workers
from trainers.api import load_config
from trainers.reproduce.estimates import LIBRARIES, training_cost
from trainers.reproduce.options import Parsed
from trainers.reproduce.pipeline import TRAINERS, Pipeline, Stage
from trainers.reproduce.places import Places

SAMPLE = 2_000  # bytes of an answer in the results
SERVING = 0.9  # of a device's memory that vLLM takes


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage takes. Bytes, but for `flops` and the number of `devices`; `device` is of each of these.

    `disk` is what stays, `peak_disk` what there is meanwhile. `plans` are the lines of single edits.
    """

    host: int
    disk: int = 0
    peak_disk: int = 0
    device: int | None = None
    devices: int = 0
    reads: int = 0
    writes: int = 0
    flops: int = 0
    plans: tuple[Mapping[str, Any], ...] = ()


def stage_cost(parsed: Parsed, models: tuple[str, ...], pipeline: Pipeline, stage: Stage, places: Places) -> Cost:
    """What a stage takes. Raises any SurgeryError that its command would raise before its work."""
    trainer = parsed.command.removeprefix("train ")
    if trainer in TRAINERS:
        return _training(trainer, parsed, pipeline, stage, places)
    if parsed.command == "train init":
        nbytes = _size(places.find(stage.makes))
        return Cost(LIBRARIES + 4 * nbytes, nbytes, nbytes)
    known: dict[str, Callable[[Parsed, tuple[str, ...], Pipeline, Places], Cost]] = {
        "apply": _apply,
        "sweep": _sweep,
        "diff": _diff,
        "eval": _eval,
    }
    return known[parsed.command](parsed, models, pipeline, places) if parsed.command in known else Cost(LIBRARIES)


def _training(trainer: str, parsed: Parsed, pipeline: Pipeline, stage: Stage, places: Places) -> Cost:
    values, machine = parsed.values, pipeline.machine
    config = load_config(
        trainer, places.content(values["config"]), settings=values["settings"], model=values["model"], out=values["out"]
    )
    parent = open_checkpoint(places.find(config.model))
    devices = (machine.devices if stage.launch else min(1, machine.devices)) if config.device == "auto" else 0
    taken = training_cost(config, parent, devices, machine.device_memory)
    host = taken.host if devices else stage.processes * taken.host
    return Cost(host, taken.disk, taken.peak_disk, taken.device, devices, reads=_size(parent.root))


def _apply(parsed: Parsed, models: tuple[str, ...], pipeline: Pipeline, places: Places) -> Cost:  # noqa: ARG001
    recipe = places.content(parsed.values["recipe"])
    made = surgery.plan(recipe, [places.find(model) for model in models], settings=parsed.values["settings"])
    cost = _edits([("", made)], made.bytes_written)
    device = _on_device(parsed, cost.host)
    return replace(cost, device=device, devices=0 if device is None else 1)


def _sweep(parsed: Parsed, models: tuple[str, ...], pipeline: Pipeline, places: Places) -> Cost:
    """Every variant's plan, as if made alone: bounds, since a sweep reads and decomposes once for all."""
    bound = plan_sweep(places.content(parsed.values["sweep"]), [places.find(model) for model in models])
    sweep = bound.sweep
    plans = [(work.candidate.name, work.plan) for work in bound.works]
    largest = max(plan.bytes_written for _, plan in plans)
    kept = {"best": largest, "none": 0}.get(sweep.keep, sum(plan.bytes_written for _, plan in plans))
    cost = _edits(plans, kept)
    asked = sweep.evaluation
    options = parsed.values["engine_options"] or asked.engine_options
    scored = _scoring(bound.models.values(), parsed.values["engine"] or asked.engine, options, pipeline)
    editing = _on_device(parsed, cost.host) or 0  # while the variants before are being scored
    device = None if scored.device is None and not editing else (scored.device or 0) + editing
    return replace(
        cost,
        host=max(cost.host, scored.host),
        peak_disk=kept + 2 * largest,
        device=device,
        devices=0 if device is None else 1,
    )


def _edits(plans: list[tuple[str, Plan]], kept: int) -> Cost:
    workers = default_workers()
    lines: list[dict[str, Any]] = [
        {
            "name": name or plan.recipe.name,
            "reads": plan.bytes_read,
            "writes": plan.bytes_written,
            "memory": plan.peak_memory(workers),
            "flops": sum(map(plan.flops, plan.tensors)),
        }
        for name, plan in plans
    ]
    return Cost(
        host=max(line["memory"] for line in lines),
        disk=kept,
        peak_disk=kept + max(line["writes"] for line in lines),
        reads=sum(line["reads"] for line in lines),
        writes=sum(line["writes"] for line in lines),
        flops=sum(line["flops"] for line in lines),
        plans=tuple(lines),
    )


def _diff(parsed: Parsed, models: tuple[str, ...], pipeline: Pipeline, places: Places) -> Cost:  # noqa: ARG001
    values = parsed.values
    select = None
    if values["layers"] or values["tensors"] or values["exclude"]:
        select = Select.model_validate(
            {"layers": values["layers"] or "all", "tensors": values["tensors"], "exclude": values["exclude"]}
        )
    ranks = [Quantity.parse(rank) for rank in values["ranks"]]
    matching = make_matching(
        [places.find(model) for model in models], ranks=ranks, select=select, quick=values["quick"]
    )
    reads = sum(info.nbytes for matrix in matching.matrices for info in matrix.infos.values())
    spectra = 8 * sum(len(models) * (3 * matrix.known + 4 * sum(matrix.ranks)) for matrix in matching.matrices)
    host = matching.peak_memory(default_workers(), LIBRARIES_BYTES)
    device = _on_device(parsed, host)
    return Cost(
        host=host,
        device=device,
        devices=0 if device is None else 1,
        disk=spectra,
        peak_disk=2 * spectra,
        reads=reads,
        writes=spectra,
        flops=sum(matrix.flops for matrix in matching.matrices),
    )


def _eval(parsed: Parsed, models: tuple[str, ...], pipeline: Pipeline, places: Places) -> Cost:
    values = parsed.values
    cost = _scoring([places.find(model) for model in models], values["engine"], values["engine_options"], pipeline)
    kept = len(models) * 2 * (values["n"] or 234) * (values["attempts"] or 1) * SAMPLE
    return Cost(cost.host, kept, kept, cost.device, cost.devices, cost.reads)


def _on_device(parsed: Parsed, host: int) -> int | None:
    """What the arithmetic takes where it runs on a GPU: what it would take in the host, without the interpreter."""
    return max(0, host - INTERPRETER_BYTES) if str(parsed.values["device"]).startswith("cuda") else None


def _scoring(models: Iterable[Any], engine: str | None, options: Mapping[str, Any], pipeline: Pipeline) -> Cost:
    sizes = [_size(model) for model in models]
    on_device = pipeline.machine.devices > 0 and engine in (None, "vllm")
    used = float(options.get("gpu_memory_utilization", SERVING))
    served = int(used * (pipeline.machine.device_memory or 0)) if on_device else None
    return Cost(LIBRARIES + 2 * max(sizes), device=served, devices=1 if on_device else 0, reads=sum(sizes))


def _size(model: str | Path) -> int:
    return sum(info.nbytes for info in open_checkpoint(model).tensors.values())


def models_of(parsed: Parsed) -> Iterator[str]:
    """The checkpoints that a command reads, as they were typed."""
    values = parsed.values
    for name in ("base", "tuned", "third", "model"):
        if isinstance(values.get(name), str):
            yield values[name]
    yield from values.get("models", ())
