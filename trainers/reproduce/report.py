"""The report of a pipeline: one HTML page that needs no other file, the figures beside it, and all numbers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import OutputError
from surgery.page import address, render
from surgery.whole_file import as_json, write_whole
from trainers.reproduce.collect import collect
from trainers.reproduce.figures import Drawn, draw_all
from trainers.reproduce.paper import MARGIN, QUANTITIES, SOURCE, Claim, claims
from trainers.reproduce.pipeline import Pipeline
from trainers.reproduce.results import AVERAGE, REFERENCE, EditRow, Results
from trainers.reproduce.standing import Standing, seed_directory
from trainers.reproduce.versions import versions
from trainers.reproduce.wording import bare, duration, shares

PAGE, NUMBERS, FIGURES = "report.html", "report.json", "figures"
TEMPLATE = Path(__file__).with_name("report.html.j2")
_CARDS = {  # numbers of QUANTITIES
    4: "OOD accuracy that SFT lost",
    5: "of it RL gives back",
    6: "20 % of the directions, as published",
    7: "the same, orthonormal",
    11: "plain average, alpha 0.5",
}


@dataclass(frozen=True)
class Shown:
    """An experiment as the page shows it."""

    results: Results
    claims: Sequence[Claim]
    figures: Sequence[Drawn]


def make_report(pipeline: Pipeline, out: Path, standings: Sequence[Standing]) -> Path:
    """Write `report.html`, `report.json` and `figures/` from whatever is there; gives the page's path.

    Raises OutputError, NotInstalledError without matplotlib or Jinja, TrainingError and RunError for the figures.
    """
    seeds = sorted({standing.seed for standing in standings})
    stale = {seed: [each.stage.makes for each in standings if each.seed == seed and each.stale] for seed in seeds}
    shown = [_shown(pipeline, i, out, stale) for i in range(len(pipeline.experiments))]
    content = _numbers(pipeline, seeds, shown, standings)
    page = render(TEMPLATE, _variables(pipeline, seeds, shown, standings))
    try:
        write_whole(out / NUMBERS, as_json(content))
        write_whole(out / PAGE, page)
    except OSError as error:
        raise OutputError(
            f"cannot write the report to `{out}`: {error.strerror}; make room, and add `--report`"
        ) from error
    return out / PAGE


def _shown(pipeline: Pipeline, number: int, out: Path, stale: Mapping[int, Sequence[str]]) -> Shown:
    """Of every seed what is not stale."""
    experiment = pipeline.experiments[number]
    found = [collect(experiment, seed_directory(out, seed), seed, places) for seed, places in stale.items()]
    results = Results(experiment, [seed for seed in found if seed.scores or seed.edits or seed.losses or seed.geometry])
    place = out / FIGURES
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make `{place}`: {error.strerror}; make room, or move what is there, and add `--report`"
        ) from error
    prefix = f"{number + 1}-" if len(pipeline.experiments) > 1 else ""
    return Shown(results, claims(results), draw_all(results, place, out, prefix))


def headline(shown: Sequence[Claim]) -> str:
    """How many of the claims were seen, and which were not."""
    theirs = [claim for claim in shown if not claim.ours]
    measured = [claim for claim in theirs if claim.verdict != "missing"]
    if not measured:
        return "Nothing has been measured yet."
    seen = sum(claim.verdict == "seen" for claim in measured)
    said = [f"Of the paper's claims that were measured here, {seen} of {len(measured)} were seen."]
    for verdict, words in (("opposite", "The opposite was seen of"), ("open", "Not decided")):
        texts = [claim.text.rstrip(".") for claim in measured if claim.verdict == verdict]
        if texts:
            said.append(f"{words}: {'; '.join(texts)}.")
    return " ".join(said)


def _variables(
    pipeline: Pipeline, seeds: Sequence[int], shown: Sequence[Shown], standings: Sequence[Standing]
) -> dict[str, Any]:
    """What the template gets: plain texts, and pictures as addresses."""
    return {
        "pipeline": pipeline,
        "seeds": seeds,
        "source": SOURCE,
        "experiments": [_experiment(each) for each in shown],
        "stages": _stages(pipeline, standings),
        "unfinished": [_unfinished(standing) for standing in standings if standing.state != "finished"],
        "seconds": duration(sum(standing.seconds for standing in standings)),
        "versions": versions(),
    }


def _experiment(shown: Shown) -> dict[str, Any]:
    results = shown.results
    return {
        "title": results.experiment.title,
        "paper": results.experiment.paper,
        "seeds": len(results.seeds),
        "headline": headline(shown.claims),
        "cards": [(label, QUANTITIES[i].shown(results), _published(i, results)) for i, label in _CARDS.items()],
        "claims": shown.claims,
        "quantities": [(each.name, each.llama, each.qwen, each.shown(results)) for each in QUANTITIES],
        "figures": [
            {"number": each.number, "title": each.title, "text": each.text, "address": _address(each.path)}
            for each in shown.figures
        ],
        "missing": [number for number in "1234567A" if number not in {each.number for each in shown.figures}],
        "groups": _groups(results),
        "reference": REFERENCE,
        "margin": f"{100 * MARGIN:g}",
        "settings": [*dict.fromkeys(text for seed in results.seeds for text in seed.settings)],
        "scores": [
            (results.title(name), path, bare(results.score(name, "id")), bare(results.score(name, "ood")))
            for name, path in results.experiment.models.items()
        ],
    }


def _published(i: int, results: Results) -> str:
    """What the paper has of a quantity, of the model that an experiment follows."""
    quantity = QUANTITIES[i]
    if results.experiment.paper is not None:
        return f"paper: {getattr(quantity, results.experiment.paper)}"
    both = dict.fromkeys((quantity.llama, quantity.qwen))
    return f"paper: {' / '.join(both)}"


def _address(path: Path) -> str:
    return address(path.with_suffix(".png").read_bytes())


def _groups(results: Results) -> list[dict[str, Any]]:
    """Edits of the same two models in one table, plain averages first."""
    groups: dict[tuple[str, str], list[EditRow]] = {}
    for row in results.edits:
        groups.setdefault((row.donor, row.edited), []).append(row)
    found = []
    for (donor, edited), rows in groups.items():
        ordered = sorted(rows, key=lambda row: not row.averages)
        title = f"{results.title(edited)} edited with {results.title(donor)}" if donor else results.title(edited)
        found.append({"title": title, "start": results.title(rows[0].edit.start), "rows": [*map(_row, ordered)]})
    return found


def _row(row: EditRow) -> dict[str, Any]:
    cells = [bare(row.scores.get("id")), bare(row.scores.get("ood"))]
    cells += [bare(row.changes.get("id"), signed=True), bare(row.changes.get("ood"), signed=True)]
    cells.append("" if row.recovered is None else shares(row.recovered))
    cells.append("" if row.beyond_average is None else bare(row.beyond_average, signed=True))
    return {"name": row.name, "average": row.edit.recipe == AVERAGE, "cells": cells}


def _stages(pipeline: Pipeline, standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Every stage with its command, and how long it took."""
    found = []
    for stage in pipeline.stages:
        own = [standing for standing in standings if standing.stage.name == stage.name]
        times = [standing.seconds for standing in own if standing.state == "finished"]
        states = [f"{state} {sum(s.state == state for s in own)}" for state in dict.fromkeys(s.state for s in own)]
        state = own[0].state if len(own) == 1 else ", ".join(states)
        took = duration(sum(times) / len(times)) if times else ""
        found.append(
            {"name": stage.name, "title": stage.title, "command": stage.shown(0), "state": state, "took": took}
        )
    return found


def _unfinished(standing: Standing) -> str:
    message = standing.message.splitlines()[0] if standing.message else ""
    return f"seed {standing.seed}, {standing.stage.name}: {standing.state}{f' ({message})' if message else ''}"


def _numbers(
    pipeline: Pipeline, seeds: Sequence[int], shown: Sequence[Shown], standings: Sequence[Standing]
) -> dict[str, Any]:
    """Everything that the page shows, for programs."""
    return {
        "pipeline": pipeline.name,
        "seeds": list(seeds),
        "experiments": [
            {
                "title": each.results.experiment.title,
                "headline": headline(each.claims),
                "claims": [claim.json() for claim in each.claims],
                "quantities": [_quantity(i, each.results) for i in range(len(QUANTITIES))],
                "scores": {
                    name: {split: _json(each.results.score(name, split)) for split in ("id", "ood")}
                    for name in each.results.experiment.models
                },
                "edits": [row.json() for row in each.results.edits],
                "figures": [drawn.path.name for drawn in each.figures],
            }
            for each in shown
        ],
        "stages": [
            {
                "seed": standing.seed,
                "name": standing.stage.name,
                "state": standing.state,
                "seconds": round(standing.seconds, 1),
                "command": standing.stage.shown(standing.seed),
                "message": standing.message,
            }
            for standing in standings
        ],
    }


def _quantity(i: int, results: Results) -> dict[str, Any]:
    quantity = QUANTITIES[i]
    return {
        "name": quantity.name,
        "llama": quantity.llama,
        "qwen": quantity.qwen,
        "here": _json(quantity.found(results)),
    }


def _json(found: Any) -> dict[str, Any] | None:
    return None if found is None else found.json()
