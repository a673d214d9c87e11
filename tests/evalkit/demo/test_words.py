"""What the demo says follows from the numbers, whatever these are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from evalkit.demo.words import findings
from evalkit.stats import Difference, Estimate
from evalkit.sweeps.result import Kind, Row, SweepResult

Points = Mapping[str, tuple[float, float]]  # of a row: accuracy in and out of distribution

POINTS: Points = {
    "base": (0.30, 0.40),
    "inter-sft": (0.35, 0.38),
    "sft": (0.40, 0.20),
    "rl": (0.45, 0.30),
    "restore-top-20pct head=20%": (0.10, 0.05),
    "restore-top-20pct head=50%": (0.20, 0.15),
    "restore-top-20pct-rotate head=20%": (0.41, 0.30),
    "values-only": (0.40, 0.20),
    "rl-with-sft-directions": (0.40, 0.20),
    "sft-with-rl-directions": (0.45, 0.30),
    "wise-ft alpha=0.5": (0.40, 0.35),
    "wise-ft alpha=0.5 sft=rl": (0.50, 0.45),
}


def made(points: Points, p: float = 0.001) -> SweepResult:
    """A result with these accuracies; every difference has the same p-value."""
    rows = []
    for name, values in points.items():
        recipe = name.split()[0] if name not in ("base", "inter-sft", "sft", "rl") else None
        kind: Kind = "variant" if recipe else "model"
        pairs = dict(zip(("id", "ood"), values, strict=True))
        scores = {split: Estimate(value, value - 0.05, value + 0.05, 100) for split, value in pairs.items()}
        start = dict(zip(("id", "ood"), points["sft"], strict=True))
        to_start = {
            split: Difference(value - start[split], value - start[split] - 0.04, value - start[split] + 0.04, 100, p)
            for split, value in pairs.items()
        }
        parameters = dict(part.split("=") for part in name.split()[1:] if not part.startswith("sft="))
        models = {"base": "base", "sft": "rl" if "sft=rl" in name else "sft"}
        rows.append(
            Row(
                name,
                kind,
                name,
                recipe=recipe,
                parameters=parameters,
                models=models,
                scores={"all": scores},
                to_start={} if name == "sft" else {"all": to_start},
            )
        )
    return SweepResult(
        "demo", "", dict.fromkeys(("base", "inter-sft", "sft", "rl"), ""), "sft", ("id", "ood"), "accuracy", {}, {},
        tuple(rows), "sft",
    )  # fmt: skip


def told(points: Points = POINTS, p: float = 0.001) -> str:
    return "\n".join(findings(made(points, p)))


def test_what_training_did() -> None:
    """The way from base to SFT with its difference, and the share of the loss that RL gives back."""
    text = told()
    assert "from 40.0 % to 20.0 % out of distribution, -20.0 [-24.0, -16.0]; its best checkpoint" in text
    assert "RL after it: in distribution +5.0 [+1.0, +9.0], out of distribution +10.0 [+6.0, +14.0], 50 %" in text


def test_one_setting_of_each_recipe_is_told() -> None:
    """The one that was named beforehand, whichever is the best; never one on top of RL. No negative shares."""
    text = told()
    assert "The published restore of the leading 20 % of the directions: in distribution -30.0" in text
    assert "out of distribution -15.0 [-19.0, -11.0]." in text
    assert "The plain average with the base: in distribution +0.0" in text
    assert "out of distribution +15.0 [+11.0, +19.0], 75 % of what was lost" in text
    assert "%, -" not in text


@pytest.mark.parametrize(
    ("values", "directions", "said"),
    [
        (0.20, 0.30, "RL's effect lies in the directions"),
        (0.30, 0.20, "RL's effect lies in the values"),
        (0.25, 0.25, "this does not tell"),
    ],
)
def test_where_the_effect_of_rl_lies(values: float, directions: float, said: str) -> None:
    """In whichever of the two is nearer to RL by half of RL's effect."""
    changed = {
        **POINTS,
        "rl-with-sft-directions": (0.4, values),
        "sft-with-rl-directions": (0.4, directions),
    }
    assert said in told(changed)


def test_nothing_is_made_of_chance() -> None:
    """Differences that chance may explain are said to be such, and RL's effect is not looked for."""
    text = told(p=0.4)
    assert text.count("(chance may explain it)") > 10
    assert "there is none to be seen here" in text


def test_no_share_of_nothing() -> None:
    """Where fine-tuning lost nothing, no share of it is told."""
    assert "of what was lost" not in told({**POINTS, "sft": (0.4, 0.4)})
