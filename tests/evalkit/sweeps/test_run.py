"""A sweep from its candidates to its result: what is made, scored and kept, once, and what a second run does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from evalkit.errors import EngineError, ResultsError, SweepError
from evalkit.sweeps.checkpoints import Checkpoints
from surgery.errors import OutputError
from tests.adapters.peft import factors, write_adapter
from tests.evalkit.sweeps.conftest import SPEC, Make, Pair, Sweeping, Told, by_name
from tests.pairs import files, read
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("without_figures")
NAMES = [
    "base", "sft", "restore-top-20pct-rotate head=10%", "restore-top-20pct-rotate head=50%", "values-only",
    "wise-ft alpha=0.5",
]  # fmt: skip
PLACES = ["restore-top-20pct-rotate-head-10", "restore-top-20pct-rotate-head-50", "values-only", "wise-ft-alpha-0_5"]
LARGER = {**SPEC, "variants": [*SPEC["variants"], {"recipe": "reset-first-quarter"}], "averages": [0.5, 0.25]}


def kept(out: Path) -> list[str]:
    """The names of the checkpoints that lie there; each is as its manifest says."""
    found = sorted(path.name for path in (out / "checkpoints").iterdir())
    for name in found:
        surgery.verify(out / "checkpoints" / name)
    return found


def test_a_row_for_each_model_and_variant(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """All are asked the same, in one engine; one is chosen and kept as a complete checkpoint that `best` leads to."""
    made = engine()
    told = Told()
    result = sweeping(progress=told)
    out = tmp_path / "out"
    assert [row.name for row in result.rows] == NAMES
    assert [row.kind for row in result.rows] == ["model"] * 2 + ["variant"] * 3 + ["baseline"]
    assert set(made.answers.values()) == {48}
    assert len(made.loaded) == 6
    assert made.closed
    assert told.said == ["2 models, 4 variants, 0 known", "base", "sft", "making 4", *NAMES[2:]]
    assert kept(out) == [result.winner.kept.removeprefix("checkpoints/")]
    assert (out / "best").resolve() == (out / result.winner.kept).resolve()
    assert {path.name for path in out.iterdir()} == {
        "best", "checkpoints", "pareto.png", "pareto.svg", "report.html", "report.json", "results", "rows.jsonl",
        "variants.jsonl",
    }  # fmt: skip
    assert json.loads((out / "report.json").read_text()) == result.json()
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert rows == result.json()["rows"]


def test_a_variant_is_what_apply_makes(sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path) -> None:
    """An average of a sweep and of `surgery apply` are the same to the byte, but for the scores in the card."""
    engine()
    sweeping(keep="all")
    surgery.apply("wise-ft", pair, tmp_path / "alone", settings={"alpha": 0.5})
    ours, theirs = files(tmp_path / "out" / "checkpoints" / PLACES[3]), files(tmp_path / "alone")
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"README.md"}


def test_nothing_is_done_twice(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """The same sweep again asks nothing, makes nothing, loads nothing, and comes to the same in the same bytes."""
    engine()
    first = sweeping()
    before = files(tmp_path / "out")
    made = engine()
    told = Told()
    second = sweeping(progress=told)
    assert not made.answers
    assert made.loaded == []
    assert told.said == ["2 models, 4 variants, 4 known", "base", "sft"]
    assert second == first
    assert files(tmp_path / "out") == before


def test_a_larger_sweep_does_only_what_is_new(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """More recipes, values and averages in the same directory; scores of the others are those of the first run."""
    engine()
    first = sweeping(keep="all")
    made = engine()
    told = Told()
    second = sweeping(LARGER, keep="all", progress=told)
    assert sorted(made.answers) == ["reset-first-quarter", "wise-ft-alpha-0_25"]
    assert told.said[3:] == ["making 2", "reset-first-quarter", "wise-ft alpha=0.25"]
    for row in first.rows:
        assert second.row(row.name).scores == row.scores
    assert kept(tmp_path / "out") == sorted([*PLACES, "reset-first-quarter", "wise-ft-alpha-0_25"])


def test_a_smaller_sweep_removes_what_it_does_not_have(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Checkpoints of candidates that are no longer named go; their scores are there should they come back."""
    engine()
    sweeping(LARGER, keep="all")
    made = engine()
    sweeping(keep="all")
    assert kept(tmp_path / "out") == PLACES
    sweeping(LARGER, keep="none")
    assert not made.answers


def test_more_examples_need_the_checkpoints_again(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Variants that went are made again for more examples, and only the new ones are asked."""
    engine()
    sweeping()
    made = engine()
    result = sweeping(n=30)
    assert set(made.answers.values()) == {12}
    assert all(row.scores["all"]["id"].n == 30 for row in result.rows)
    assert len(kept(tmp_path / "out")) == 1


SHARES = {
    "base": (0.1, 0.5), "sft": (0.5, 0.1), "restore_top_20pct_rotate_head_10": (0.45, 0.3),
    "restore_top_20pct_rotate_head_50": (0.3, 0.6), "values_only": (0.4, 0.2), "wise_ft_alpha_0_5": (0.35, 0.25),
}  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "expected"), [("best", [PLACES[1]]), ("pareto", PLACES[:2]), ("all", PLACES), ("none", [])]
)
def test_what_is_kept(sweeping: Sweeping, engine: Make, tmp_path: Path, keep: str, expected: list[str]) -> None:
    """Exactly the best, those that no other beats, all, or none; rows tell which, and `best` leads to the best."""
    engine(by_name(**SHARES))
    out = tmp_path / "out"
    result = sweeping(keep=keep)
    assert kept(out) == expected
    assert [row.kept for row in result.rows if row.kept] == [f"checkpoints/{name}" for name in expected]
    assert result.best == NAMES[3]
    assert (out / "best").exists() is (keep != "none")
    assert list(out.rglob("*.partial*")) == []


def test_another_choice_brings_checkpoints_back(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """With another objective, or more to keep, what had gone is made again, and nothing is asked again."""
    engine(by_name(**SHARES))
    sweeping()
    made = engine(by_name(**SHARES))
    result = sweeping({**SPEC, "objective": {"improve": "id", "tolerate": {"ood": 0.0}}})
    assert (result.best, kept(tmp_path / "out")) == ("sft", [])
    assert not (tmp_path / "out" / "best").is_symlink()
    assert (sweeping(keep="all").best, kept(tmp_path / "out")) == (NAMES[3], PLACES)
    assert not made.answers


def test_a_checkpoint_that_is_lost_is_made_again(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Deleted or cut short by someone, the winner is there after the next run."""
    engine(by_name(**SHARES))
    result = sweeping()
    winner = tmp_path / "out" / result.winner.kept
    before = files(winner)
    shutil.rmtree(winner)
    assert sweeping() == result
    (winner / "model.safetensors").write_bytes(b"short")
    assert sweeping() == result
    assert files(winner) == before


def test_the_start_may_be_the_best(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Then no checkpoint is kept, and the result says so."""
    engine(by_name(**SHARES | {"sft": (1.0, 1.0)}))
    result = sweeping()
    assert result.best == "sft"
    assert kept(tmp_path / "out") == []
    assert "nothing was chosen" in result.words[0]


def test_changed_models_are_swept_anew(sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path) -> None:
    """New weights under the old path: what depends on them is made and asked again, and the old winner goes."""
    own = {"base": pair["base"], "sft": Path(shutil.copytree(pair["sft"], tmp_path / "sft"))}
    engine(by_name(**SHARES))
    sweeping(models=own)
    before = files(tmp_path / "out" / "best")
    save_tiny(own["sft"], seed=7)
    made = engine(by_name(**SHARES))
    sweeping(models=own)
    assert sorted(made.answers) == sorted(["sft", *PLACES])
    assert kept(tmp_path / "out") == [PLACES[1]]
    assert files(tmp_path / "out" / "best")["model.safetensors"] != before["model.safetensors"]


def test_equal_content_is_asked_once(sweeping: Sweeping, engine: Make) -> None:
    """Two candidates whose checkpoints are the same byte for byte share their answers; both have a row."""
    spec = {
        **SPEC,
        "averages": [],
        "variants": [{"recipe": "reset-first-quarter", "grid": {"layers": ["first 50%", "0", "first 1"]}}],
    }
    made = engine()
    result = sweeping(spec)
    assert len([name for name in made.answers if name.startswith("reset")]) == 1
    assert len({row.digest for row in result.rows[2:]}) == 1
    assert len({str(row.scores) for row in result.rows[2:]}) == 1
    assert result.best in ("sft", result.rows[2].name)


def test_several_seeds(sweeping: Sweeping, engine: Make) -> None:
    """Examples of all seeds count together, and a model is loaded once for all of them."""
    made = engine()
    spec = {**SPEC, "evaluation": {**SPEC["evaluation"], "seeds": [0, 1, 2]}}
    result = sweeping(spec)
    assert all(row.scores["all"]["id"].n == 72 for row in result.rows)
    assert all(row.to_start["all"]["id"].n == 72 for row in result.rows if row.to_start)
    assert len(made.loaded) == 6
    again = engine()
    assert sweeping(spec) == result
    assert not again.answers


def test_a_sweep_by_losses(sweeping: Sweeping, engine: Make) -> None:
    """References are scored, nothing is generated, and less is better."""
    made = engine()
    spec = {**SPEC, "objective": {"measure": "loss_per_token"}, "averages": []}
    result = sweeping(spec)
    assert not made.answers
    assert len(made.scored) == 5 * 48
    assert result.best == "sft"  # every model has the same losses
    assert result.rows[0].scores["all"]["id"].value == 0.5
    assert "attempts" not in result.settings
    again = engine()
    assert sweeping(spec) == result
    assert again.scored == []


def test_another_sweep_or_other_models_are_refused(
    sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path
) -> None:
    """Nobody loses the winner of one sweep to another that was given the same directory, or none."""
    engine()
    sweeping()
    before = files(tmp_path / "out")
    with pytest.raises(OutputError, match=r"holds the sweep `tries`; choose another `--out`, or delete that one"):
        sweeping({**SPEC, "name": "others"})
    other = shutil.copytree(pair["sft"], tmp_path / "other")
    with pytest.raises(OutputError, match=rf"holds the sweep `tries`, its `sft` is `{pair['sft']}`; choose"):
        sweeping(models={"base": pair["base"], "sft": other})
    assert {name: content for name, content in files(tmp_path / "out").items() if "results" not in name} == {
        name: content for name, content in before.items() if "results" not in name
    }
    sweeping({**SPEC, "models": ["base", "sft", "rl"], "start": "sft"}, models={**pair, "rl": other})
    sweeping(models={**pair, "base": os.path.relpath(pair["base"])})


@pytest.mark.parametrize("content", ["a file", "a directory with a file", "models"])
def test_what_is_no_sweeps_directory_is_refused(
    sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path, content: str
) -> None:
    """Nothing is written there, and nothing is asked before that is found out."""
    made = engine()
    out = tmp_path / "out"
    if content == "a file":
        out.write_text("mine")
    elif content == "models":
        shutil.copytree(pair["sft"], out)
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(OutputError, match="exists and holds no sweep; choose another `--out`"):
        sweeping()
    assert files(tmp_path) == before
    assert made.loaded == []
    shutil.rmtree(out, ignore_errors=True)


def test_models_in_the_directory_are_refused(sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path) -> None:
    """The winner of a sweep is no model of a sweep into the same directory, where it might be removed."""
    engine(by_name(**SHARES))
    sweeping()
    with pytest.raises(OutputError, match=r"the model `sft` .* is, contains or lies inside"):
        sweeping(models={"base": pair["base"], "sft": tmp_path / "out" / "best"})
    with pytest.raises(OutputError, match=r"the model `base` .* is, contains or lies inside"):
        sweeping(out="m/sweep", models={"base": shutil.copytree(pair["base"], tmp_path / "m"), "sft": pair["sft"]})
    assert not (tmp_path / "m" / "sweep").exists()


def test_two_sweeps_at_a_time_are_refused(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """The second is told at once, and leaves the first alone."""
    made = engine()
    with Checkpoints(tmp_path / "out"), pytest.raises(ResultsError, match=r"another sweep is running there: .*; wait"):
        sweeping()
    assert made.loaded == []
    assert sweeping().rows


def test_all_models_are_checked_before_one_is_asked(
    sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path
) -> None:
    """The last model's missing tokenizer is told first, and with it right the same directory is taken."""
    broken = Path(shutil.copytree(pair["sft"], tmp_path / "sft"))
    (broken / "tokenizer.json").unlink()
    made = engine()
    with pytest.raises(EngineError, match="has no tokenizer"):
        sweeping(models={"base": pair["base"], "sft": broken})
    with pytest.raises(EngineError, match="single file; give the directory"):
        sweeping(models={"base": pair["base"], "sft": pair["sft"] / "model.safetensors"})
    assert made.loaded == []
    assert sweeping().rows


def test_an_engine_that_fails_leaves_the_others(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """What was scored before is kept, and the next run goes on with what was made."""
    made = engine(by_name(**SHARES))
    load = made.load

    def failing(model: Any, context: int) -> None:
        if "head-50" in model.name:
            raise EngineError(f"`{model.name}` cannot be loaded")
        load(model, context)

    made.load = failing  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="cannot be loaded"):
        sweeping()
    assert made.closed
    assert kept(tmp_path / "out") == PLACES
    again = engine(by_name(**SHARES))
    told = Told()
    result = sweeping(progress=told)
    assert sorted(again.answers) == PLACES[1:]
    assert "making" not in " ".join(told.said)
    assert result.best == NAMES[3]


def test_too_few_examples_and_unknown_splits(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Told at once with everything else that does not fit, before anything is written."""
    engine()
    spec = {**SPEC, "objective": {"improve": {"id": 1, "odd": 1}, "tolerate": {"hard": 0.1}}}
    with pytest.raises(SweepError) as caught:
        sweeping(spec, n=1)
    assert [str(fault) for fault in caught.value.faults] == [
        "sweep objective.improve.odd: `odd` is not among the splits that are scored: `id`, `ood`",
        "sweep objective.tolerate.hard: `hard` is not among the splits that are scored: `id`, `ood`",
        "split `id`: its 1 example leaves nothing for the report half; score more (`n`, `--n`)",
        "split `ood`: its 1 example leaves nothing for the selection half; score more (`n`, `--n`)",
    ]
    assert not (tmp_path / "out").exists()


BIG: dict[str, Any] = {
    "name": "big",
    "models": ["base", "sft"],
    "parameters": {"w": 1.0},
    "steps": [{"op": "linear", "models": ["base", "sft"], "weights": [0.5, "$w"], "normalize": False}],
    "output": {"dtype": "float16"},
}
BURSTING = {
    **SPEC,
    "variants": [{"recipe": BIG, "grid": {"w": [0.4, 1e6]}}, *SPEC["variants"]],
}  # the norms are 1: 1e6 is more than float16 holds
FAILED = "big w=1000000.0"


def by_itself(spec: dict[str, Any]) -> dict[str, Any]:
    """The sweep without what cannot be made."""
    return {**spec, "variants": [{"recipe": BIG, "grid": {"w": [0.4]}}, *SPEC["variants"]]}


@pytest.mark.parametrize("copies", [None, 2, 1])
def test_a_variant_that_cannot_be_made_is_its_own_loss(
    sweeping: Sweeping, engine: Make, tmp_path: Path, pair: Pair, copies: int | None
) -> None:
    """All others are made, scored and kept as without it, in whatever batches; its row and a note say why."""
    nbytes = 2 * (pair["sft"] / "model.safetensors").stat().st_size
    engine()
    told = Noting()
    result = sweeping(BURSTING, keep="all", disk=copies and int((copies + 0.5) * nbytes), progress=told)
    row = result.row(FAILED)
    assert [each.name for each in result.rows].index(FAILED) == 3
    assert row.error.startswith("`model.")
    assert "float16 holds up to" in row.error
    assert str(tmp_path) not in row.error
    assert (row.scores, row.digest, row.kept, row.best) == ({}, None, None, False)
    assert told.notes[1:] == [f"`{FAILED}` could not be made: {row.error}"]
    assert any(sentence.startswith(f"{FAILED} could not be made: ") for sentence in result.words)
    assert f"could not be made: {row.error.partition('(')[0]}" in (tmp_path / "out" / "report.html").read_text()
    engine()
    without = sweeping(by_itself(BURSTING), "without", keep="all")
    assert [each.digest for each in result.rows if each is not row] == [each.digest for each in without.rows]
    assert kept(tmp_path / "out") == kept(tmp_path / "without")
    made, again = engine(), Noting()
    assert sweeping(BURSTING, keep="all", progress=again) == result
    assert (made.answers, again.notes) == ({}, told.notes[:1])  # which is that a half is small
    assert not [text for text in again.said if "making" in text]


def test_nothing_can_be_made(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """A result all the same, with the models in it."""
    engine()
    spec = {**SPEC, "variants": [{"recipe": BIG, "grid": {"w": [1e6, 1e7]}}], "averages": []}
    result = sweeping(spec, progress=Noting())
    assert [row.error is None for row in result.rows] == [True, True, False, False]
    assert result.best == "sft"
    assert kept(tmp_path / "out") == []
    assert result.words[0] == "None of the variants could be made: nothing was chosen beside sft."


class Noting(Told):
    """Remembers notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_checkpoints_of_an_earlier_run_go_with_a_note(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """How many of those that it had kept do not stay; nothing of those that have just been made."""
    engine()
    first, second, third = Noting(), Noting(), Noting()
    sweeping(keep="all", n=60, progress=first)
    sweeping(keep="none", n=60, progress=second)
    sweeping(keep="none", n=60, progress=third)
    assert (first.notes, third.notes) == ([], [])
    assert second.notes == ["4 checkpoints of an earlier run do not stay: removed"]
    assert kept(tmp_path / "out") == []


def test_halves_of_few_problems_are_noted(sweeping: Sweeping, engine: Make) -> None:
    """With their number, before anything is asked."""
    engine()
    told = Noting()
    sweeping(n=6, progress=told)
    assert told.notes
    assert all("score more (`n`, `--n`)" in text for text in told.notes)
    assert told.notes[0].startswith("the selection half of id has ")


def test_rows_tell_whose_last_bits_depend_on_others(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """Those that get a part of a larger decomposition; an average does not, and the page of a winner says so."""
    engine(by_name(**SHARES | {"restore_top_20pct_rotate_head_10": (1.0, 1.0)}))
    shared = [row.name for row in sweeping().rows if row.shared]
    assert NAMES[2] in shared
    assert NAMES[5] not in shared
    assert "`surgery apply` alone may differ in the last bits" in (tmp_path / "out" / "report.html").read_text()


def test_models_with_adapters(sweeping: Sweeping, engine: Make, pair: Pair, tmp_path: Path) -> None:
    """`MODEL+ADAPTER` is edited as it is, and scored as a checkpoint that is made once, in the sweep's directory."""
    lora = write_adapter(tmp_path / "lora", factors(read(Path(pair["base"]))))
    models = {"base": pair["base"], "sft": f"{pair['base']}+{lora}"}
    made = engine()
    first = sweeping(models=models)
    assert {"base", "sft"} <= made.answers.keys()
    merged = read(tmp_path / "out/models/sft")
    changed = {name for name, tensor in read(Path(pair["base"])).items() if not torch.equal(tensor, merged[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    assert surgery.verify(tmp_path / "out/models/sft").tensors == len(merged)
    again = engine()
    assert [row.name for row in sweeping(models=models).rows] == [row.name for row in first.rows]
    assert not again.answers
    with pytest.raises(OutputError, match="lies inside"):
        sweeping(models=models, out="lora/out")
