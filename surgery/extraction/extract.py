"""The whole of `surgery extract-lora`: choose, make the parts, put them together, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from surgery.adapters.adapter import WEIGHTS
from surgery.adapters.config import CONFIG
from surgery.adapters.keys import PREFIX
from surgery.card import CARD_FILE, license_of
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.descriptors import reserve_descriptors
from surgery.dtypes import OUTPUT_DTYPES
from surgery.errors import Fault, PlanError
from surgery.extraction.choice import Aim, Choice, choose
from surgery.extraction.output import ADAPTER, Parts, make_config, row_of, whole_name
from surgery.extraction.report import Extracted, Row
from surgery.header import listed
from surgery.manifest import (
    FORMAT,
    Manifest,
    RecipeEntry,
    ShardEntry,
    TensorEntry,
    identity,
    input_entry,
    is_made_by,
    read_manifest,
    versions,
)
from surgery.unfinished import Places, check_output, settled, writing
from surgery.whole_file import as_json
from surgery.writer import MANIFEST_FILE

if TYPE_CHECKING:
    from surgery.extraction.run import Progress
    from surgery.layout import Entry
    from surgery.plan import OutputFile
    from surgery.select import Select


@dataclass(frozen=True, slots=True)
class Options:
    """How an adapter is made: arguments of `surgery.extract_lora`."""

    workers: int
    memory: int | None = None
    device: str = "cpu"
    overwrite: bool = False
    fresh: bool = False
    durable: bool = False


def extract(
    base: str | Path,
    model: str | Path,
    out: Path,
    aim: Aim,
    dtype: str,
    options: Options,
    *,
    select: Select | None = None,
    save: Sequence[str] = (),
    progress: Progress | None = None,
) -> Extracted:
    """Make the adapter; see `surgery.extract_lora`."""
    choice = choose(open_checkpoint(base), open_checkpoint(model), aim, dtype, select=select, save=save)
    with writing(out):
        places = Places(Path(os.path.abspath(out)))  # noqa: PTH100 - a link at OUT is refused, not followed
    work = identity(choice.hash, choice.inputs, options.device)
    if settled(places, work, lambda: is_made_by(places.out, choice.hash)):
        return _reported(out, choice)
    check_output(places, ADAPTER, choice.inputs, overwrite=options.overwrite)
    if options.memory is not None:
        choice.check_memory(options.memory)
    from surgery.crew import check_device  # torch: after what can be refused without it
    from surgery.extraction.run import make_parts

    check_device(options.device)
    reserve_descriptors(choice.inputs.values(), options.workers + 2)
    with Parts(places, work, overwrite=options.overwrite, fresh=options.fresh) as parts:
        most = choice.bytes_at_most(OUTPUT_DTYPES[dtype])
        if most is not None:
            parts.check_room(most)
        make_parts(
            choice,
            parts,
            OUTPUT_DTYPES[dtype],
            workers=options.workers,
            memory=options.memory,
            device=options.device,
            progress=progress,
        )
        return _finish(out, choice, parts, durable=options.durable)


def _finish(out: Path, choice: Choice, parts: Parts, *, durable: bool) -> Extracted:
    found = [row_of(parts.header(number)) for number in range(len(choice.targets))]
    rows = [row for row in found if row is not None]
    if not any(row.kept == "factors" for row in rows):
        parts.drop()
        message = "no selected matrix differs between the two models; an adapter would hold nothing"
        raise PlanError([Fault("", message)])
    file, placed = parts.assemble(len(choice.targets))
    entries = [entry for entry, _ in placed.values()]
    extracted = Extracted(
        out=out,
        base=choice.base.source,
        model=choice.model.source,
        rows=tuple(rows),
        equal=len(found) - len(rows),
        parameters=sum(prod(entry.shape) for entry in entries),
        nbytes=file.size,
        remarks=(*choice.remarks, *_left_out(rows)),
    )
    config = as_json(make_config(choice, rows))
    manifest = _manifest(choice, extracted, config, file, placed)
    parts.publish(
        {CONFIG: config, CARD_FILE: _card(choice, extracted), MANIFEST_FILE: manifest.dump()}, durable=durable
    )
    return extracted


def _left_out(rows: Sequence[Row]) -> list[str]:
    names = [row.name for row in rows if row.kept == "nothing"]
    if not names:
        return []
    why = "differs and is" if len(names) == 1 else "differ and are"
    told = f"{listed(names)}: {why} left out, since only weights of linear layers have factors"
    return [f"{told}; `--save embedding --save norm`, or any other group or name, stores tensors whole"]


def _manifest(
    choice: Choice,
    extracted: Extracted,
    config: bytes,
    file: OutputFile,
    placed: Mapping[str, tuple[Entry, str]],
) -> Manifest:
    read = {whole_name(name): target.name for target in choice.targets for name in target.stored_as}
    return Manifest(
        format=FORMAT,
        versions=versions(),
        plan=choice.hash,
        recipe=RecipeEntry(name="extract-lora", text="", resolved=choice.settings),
        inputs={role: input_entry(checkpoint) for role, checkpoint in choice.inputs.items()},
        shards={WEIGHTS: ShardEntry(size=file.size, header=blake3(file.header).hexdigest())},
        files={CONFIG: blake3(config).hexdigest()},
        tensors=tuple(
            TensorEntry(
                name=name,
                file=WEIGHTS,
                dtype=entry.dtype.name,
                shape=entry.shape,
                done=("extract-lora",),
                read=tuple(f"{role} {read.get(name, name.removeprefix(PREFIX))}" for role in choice.inputs),
                blake3=digest,
            )
            for name, (entry, digest) in placed.items()
        ),
        report=_report(extracted),
    )


def _report(extracted: Extracted) -> dict[str, Any]:
    """What the manifest holds of it; the models are among its inputs."""
    found = {key: value for key, value in extracted.json().items() if key not in ("base", "model")}
    remarks = [os.fsencode(remark).decode(errors="backslashreplace") for remark in extracted.remarks]
    return {**found, "remarks": remarks, "rows": [row.dump() for row in extracted.rows]}


def _reported(out: Path, choice: Choice) -> Extracted:
    """What the manifest of a finished adapter says of it."""
    report = read_manifest(out).report or {}
    return Extracted(
        out=out,
        base=choice.base.source,
        model=choice.model.source,
        rows=tuple(Row.load(fields) for fields in report["rows"]),
        equal=report["equal"],
        parameters=report["parameters"],
        nbytes=report["bytes"],
        remarks=tuple(report["remarks"]),
    )


def _card(choice: Choice, extracted: Extracted) -> bytes:
    """`README.md` with the front matter that the Hugging Face Hub reads."""
    lines = ["library_name: peft", "tags:", "- lora", "- surgery"]
    if choice.base.hub_id:
        lines += [f"base_model: {choice.base.hub_id}", "base_model_relation: adapter"]
    license_line = license_of(choice.model)
    front = "\n".join([f"license: {license_line}", *lines] if license_line else lines)
    matrices = sum(row.kept == "factors" for row in extracted.rows)
    return f"""---
{front}
---

# LoRA of {_name(choice.model)} over {_name(choice.base)}

The change from {_name(choice.base)} to {_name(choice.model)}, as factors of {choice.aim} for {matrices} matrices,
without training. They keep {100 * extracted.energy:.2f} % of the squared change of these matrices (relative error
{extracted.error:.3g}), and {100 * extracted.energy_in_all:.2f} % of that of all tensors that were compared.
`surgery.json` has the figures for each.
""".encode(errors="backslashreplace")


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.hub_id or f"`{checkpoint.root.resolve().name}`"
