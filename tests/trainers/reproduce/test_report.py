"""The report from outputs that are made up: known numbers give known intervals, and what is missing is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.reproduce.fabricated import HALF, estimate, pipeline, write_records, write_seed
from trainers.reproduce.across import Across
from trainers.reproduce.figures import mean_rows
from trainers.reproduce.paper import Claim
from trainers.reproduce.records import Records
from trainers.reproduce.report import make_report
from trainers.reproduce.standing import standings

T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 95 % two-sided
OVER_SEEDS = T2 * 0.01 / 3**0.5  # half the interval of three seeds that are a point apart


def report(out: Path, seeds: int, failed: str = "", **parts: bool) -> tuple[dict[str, Any], str]:
    """The numbers and the page of so many seeds."""
    made = pipeline()
    for seed in range(seeds):
        write_records(made, out, seed, failed)
        write_seed(out, seed, **parts)
    page = make_report(made, out, standings(made, out, range(seeds)))
    return json.loads((out / "report.json").read_text()), page.read_text()


def quantity(numbers: dict[str, Any], name: str) -> Any:
    """Ours of a quantity."""
    (found,) = [each for each in numbers["experiments"][0]["quantities"] if each["name"].startswith(name)]
    return found["here"]


def claim(numbers: dict[str, Any], text: str) -> Any:
    """The claim that begins so."""
    (found,) = [each for each in numbers["experiments"][0]["claims"] if each["text"].startswith(text)]
    return found


def test_three_seeds(tmp_path: Path) -> None:
    """Means over seeds with Student's intervals, which are wider here than the hands'."""
    numbers, page = report(tmp_path, 3)
    rl = quantity(numbers, "OOD accuracy, RL")
    assert rl["value"] == pytest.approx(0.19)
    assert rl["high"] - rl["value"] == pytest.approx(OVER_SEEDS, rel=1e-6)
    assert rl["single"] == pytest.approx([0.18, 0.19, 0.20])
    lost = quantity(numbers, "OOD lost")
    assert (lost["value"], lost["low"]) == (pytest.approx(0.21), pytest.approx(0.21 - OVER_SEEDS, rel=1e-6))
    assert quantity(numbers, "share of it that RL recovers")["value"] == pytest.approx(0.21 / 0.63)
    assert quantity(numbers, "share that the plain average")["value"] == pytest.approx(0.42 / 0.63)
    assert quantity(numbers, "step of Inter-SFT")["single"] == [40, 40, 40]
    for text in ("3 seeds", "19.0 % [16.5, 21.5]", "33 % [22, 44]", "over 3 seeds (Student&#39;s t)"):
        assert text in page


def test_one_seed(tmp_path: Path) -> None:
    """The hands' intervals, and that they say nothing of other seeds; shares take the loss as it is."""
    numbers, page = report(tmp_path, 1)
    rl = quantity(numbers, "OOD accuracy, RL")
    assert (rl["value"], rl["low"], rl["high"]) == (0.18, pytest.approx(0.18 - HALF), pytest.approx(0.18 + HALF))
    shared = quantity(numbers, "share of it that RL recovers")
    assert (shared["value"], shared["low"]) == (pytest.approx(0.3), pytest.approx((0.06 - HALF) / 0.2))
    assert "say nothing about other seeds" in page
    assert "shares of one seed take the loss as it is" in page


def test_claims_as_they_come_out(tmp_path: Path) -> None:
    """What the intervals say: seen, the opposite, not decided; negative results stand in the headline."""
    numbers, page = report(tmp_path, 1)
    verdicts = {
        "SFT loses": "seen",
        "RL after SFT": "seen",
        "It is RL": "seen",
        "The leading 20% of the directions, taken from base as published": "opposite",
        "The leading 20% of the directions, taken from base and kept": "seen",
        "The first 25 %": "open",
        "The plain average": "seen",
        "Singular values alone": "open",
        "RL's weights": "seen",
    }
    assert {text: claim(numbers, text)["verdict"] for text in verdicts} == verdicts
    headline = numbers["experiments"][0]["headline"]
    assert headline.startswith(
        "Of the paper's claims that were measured here, 3 of 6 were seen. The opposite was seen of"
    )
    assert "Singular values alone, taken from base, change nothing" in headline.split("Not decided: ")[1]
    assert "the opposite was seen" in page
    assert "where it lies within 2 points of zero, a margin named beforehand" in page


@pytest.mark.parametrize(
    ("low", "high", "verdict", "label"),
    [
        (-0.019, 0.019, "seen", "no change was seen"),
        (0.001, 0.019, "seen", "no change was seen"),
        (-0.03, 0.019, "open", "not decided"),
        (0.01, 0.03, "open", "not decided"),
        (-float("inf"), float("inf"), "open", "not decided"),
        (0.021, 0.03, "opposite", "a change was seen"),
        (-0.5, -0.021, "opposite", "a change was seen"),
    ],
)
def test_no_change(low: float, high: float, verdict: str, label: str) -> None:
    """It is seen where the whole interval lies within two points of zero, and too few data decide nothing."""
    middle = (low + high) / 2
    claim = Claim("Nothing changes.", Across(middle, low, high, (middle, middle)), 0)
    assert (claim.verdict, claim.label) == (verdict, label)
    assert Claim("Nothing changes.", None, 0).label == "not measured"


def test_averages_stand_beside_every_edit(tmp_path: Path) -> None:
    """Plain averages come first among the edits of the same models; every other edit is compared with one."""
    numbers, page = report(tmp_path, 3)
    edits = {edit["name"]: edit for edit in numbers["experiments"][0]["edits"]}
    beyond = edits["restore-top-20pct-rotate head=20%"]["beyond_average"]
    assert (beyond["value"], beyond["seeds"]) == (pytest.approx(-0.04), 3)
    assert edits["wise-ft alpha=0.5"]["beyond_average"] is None
    assert claim(numbers, "Restored directions")["verdict"] == "open"  # equal seeds, and nothing known of the problems
    assert page.index("wise-ft alpha=0.25") < page.index("restore-top-20pct head=5%")
    change = edits["restore-top-20pct head=20%"]["changes"]["ood"]
    assert change["value"] == pytest.approx(-0.05)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """A report can be made of anything: of no stage, of one, and of a stage that has failed."""
    made = pipeline()
    page = make_report(made, tmp_path, standings(made, tmp_path, [0])).read_text()
    assert "Nothing has been measured yet." in page
    assert "not there yet" in page
    assert "Without data yet: figures 1, 2, 3, 4, 5, 6, 7, A." in page
    numbers, page = report(tmp_path, 1, failed="edits", sweeps=False)
    assert quantity(numbers, "OOD accuracy, RL")["value"] == 0.18
    assert quantity(numbers, "OOD change of RL") is None
    assert "Without data yet: figures 3, 4, 5, 6, 7, A." in page
    assert "seed 0, edits: failed (the device&#39;s memory does not suffice)" in page


def test_models_of_sweeps_stand_in(tmp_path: Path) -> None:
    """Without `surgery eval` the models' scores are those of the sweeps."""
    numbers, _ = report(tmp_path, 1, scores=False)
    assert quantity(numbers, "OOD accuracy, Inter-SFT")["value"] == 0.32
    assert quantity(numbers, "OOD lost")["value"] == pytest.approx(0.2)
    assert claim(numbers, "It is RL")["verdict"] == "missing"


def test_figures(tmp_path: Path) -> None:
    """Each is written as PNG and SVG, the same bytes again, and is in the page."""
    numbers, page = report(tmp_path, 3)
    names = numbers["experiments"][0]["figures"]
    assert names == [f"figure-{i}" for i in (1, 2, 5, 6, 7)]
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert sorted(files) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    assert page.count("<img") == len(names)
    report(tmp_path, 3)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}


def test_names_are_text(tmp_path: Path) -> None:
    """What outputs call themselves is escaped."""
    write_seed(tmp_path, 0)
    path = tmp_path / "seed-0" / "edits" / "report.json"
    path.write_text(path.read_text().replace('"values-only"', '"<script>alert(1)</script>"'))
    made = pipeline()
    page = make_report(made, tmp_path, standings(made, tmp_path, [0])).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_damaged_outputs_are_missing(tmp_path: Path) -> None:
    """A report that cannot be read counts as not there."""
    write_seed(tmp_path, 0)
    (tmp_path / "seed-0" / "swap" / "report.json").write_text("{")
    made = pipeline()
    assert "not there yet" in make_report(made, tmp_path, standings(made, tmp_path, [0])).read_text()


def test_stale_outputs_are_missing(tmp_path: Path) -> None:
    """What was made of results that are no more, or by another command, is not shown as a result."""
    report(tmp_path, 1)
    made = pipeline()
    with Records(tmp_path / "seed-0") as records:
        records.put("edits", replace(records.rows["edits"], run="new", read={"sft": "earlier"}))
        records.put("scores", replace(records.rows["scores"], digest="other"))
    page = make_report(made, tmp_path, standings(made, tmp_path, [0])).read_text()
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert {edit["sweep"] for edit in numbers["experiments"][0]["edits"]} == {"swap"}
    assert numbers["experiments"][0]["scores"]["control"] == {"id": None, "ood": None}
    assert "seed 0, scores: open (its command has changed since it ran)" in page


def test_the_edited_model_need_not_be_the_last(tmp_path: Path) -> None:
    """A recipe says what it begins with; in reports that do not tell it is the last role."""
    report(tmp_path, 1)
    path = tmp_path / "seed-0" / "edits" / "report.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        if row["kind"] != "model":
            row |= {"models": {"sft": "sft", "base": "base"}, "edited": "sft"}
    path.write_text(json.dumps(content))
    made = pipeline()
    make_report(made, tmp_path, standings(made, tmp_path, [0]))
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert quantity(numbers, "share that the plain average")["value"] == pytest.approx(0.13 / 0.2)


def test_mean_rows() -> None:
    """At the steps that all logs have, the mean of the figures that all have there; the last row of a step counts."""
    first = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 3.0, "ood_loss": 1.0}, {"step": 3}]
    second = [{"step": 1, "loss": 2.0, "id_loss": 4.0}, {"step": 2, "loss": 5.0, "ood_loss": None}]
    assert mean_rows([first, second]) == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 4.0}]


def test_the_made_up_numbers() -> None:
    """They are what `Estimate.json` writes."""
    assert estimate(0.2)["n"] == 400
