"""The scores in the model card of a checkpoint that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import surgery
from evalkit.sweeps import card
from evalkit.sweeps.card import add_scores
from evalkit.sweeps.result import Row, SweepResult
from evalkit.sweeps.words import SHARED
from surgery.errors import OutputError
from tests.evalkit.sweeps.conftest import SPEC, Make, Sweeping, by_name
from tests.evalkit.sweeps.made import HOSTILE, aim, result

CARD = "---\ntags:\n- merge\n---\n\n# name\n\n## Recipe\n\n```yaml\n# Comment:\n\n## Scores\n# none yet\n```\n"
UNSEEN = "on the half of the examples that the choice of this variant has not seen"


def written(tmp_path: Path, found: SweepResult, name: str = "restore head=40%", before: str | None = CARD) -> str:
    """The card of a row after its scores were added."""
    place = tmp_path / "checkpoints" / "c"
    place.mkdir(parents=True, exist_ok=True)
    if before is not None:
        (place / "README.md").write_text(before)
    add_scores(tmp_path, kept(found.row(name)), found)
    return (place / "README.md").read_text()


def kept(row: Row) -> Row:
    """The row with a checkpoint."""
    return Row(**{name: getattr(row, name) for name in row.__slots__} | {"kept": "checkpoints/c"})


def test_the_winners_card_has_the_scores_that_the_choice_has_not_seen(tmp_path: Path) -> None:
    """The report half: the winner, the models, and the paired difference, with intervals; how many were tried."""
    found = result()
    text = written(tmp_path, found)
    assert text.startswith(CARD.rstrip())
    section = text.removeprefix(CARD.rstrip()).strip().splitlines()
    assert section[:4] == [
        card.MARK,
        "## Scores",
        "",
        f"Accuracy, % with 95 % intervals, {UNSEEN}; 4 variants were tried.",
    ]
    assert section[5:7] == ["| | id | ood |", "|---|---|---|"]
    best = found.winner.scores["report"]["ood"]
    assert f"{100 * best.value:.1f} [{100 * best.low:.1f}, {100 * best.high:.1f}] |" in section[7]
    assert section[7].startswith("| this checkpoint (`restore head=40%`) | ")
    assert [line.split("|")[1].strip() for line in section[8:11]] == [
        "`base`", "`sft`", "this checkpoint less `sft`, on the same examples"
    ]  # fmt: skip
    difference = found.winner.to_start["report"]["ood"]
    assert f"{100 * difference.value:+.1f} [" in section[10]
    assert section[-1] == 'Evaluation: task "sums", n {"id": 60, "ood": 60}, seeds [0], part "test".'


def test_other_cards_say_that_they_are_of_all_examples(tmp_path: Path) -> None:
    """What was not chosen has been seen by no choice."""
    text = written(tmp_path, result(), "values")
    assert "Accuracy, % with 95 % intervals, on all examples; 4 variants were tried." in text


def test_scores_replace_earlier_ones(tmp_path: Path) -> None:
    """Again and again the card has one section; the same scores leave the file untouched; what follows stays."""
    first = written(tmp_path, result())
    path = tmp_path / "checkpoints" / "c" / "README.md"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert written(tmp_path, result(), before=None) == first
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    second = written(tmp_path, result(n=40), before=f"{first}\n## My own\n\nwords\n")
    assert second.count("## Scores") == 2  # one of them in the recipe
    assert second.count(card.MARK) == 1
    assert "## My own\n\nwords" in second
    assert '"id": 40' in second
    assert '"id": 60' not in second


def test_foreign_names_do_not_break_the_table(tmp_path: Path) -> None:
    """A bar in a name is no column."""
    variants = {HOSTILE: {"id": 0.9, "ood": 0.9}}
    text = written(tmp_path, result(variants), HOSTILE)
    (row,) = (line for line in text.splitlines() if "this checkpoint (" in line)
    assert row.count("|") == 4
    assert "one variant was tried" in text


def test_losses_in_their_own_unit(tmp_path: Path) -> None:
    """Three digits, no per cent."""
    found = result(wanted=aim(measure="loss_per_token"))
    assert "Loss a token with 95 % intervals" in written(tmp_path, found, found.best)


def test_cards_that_others_have_changed(tmp_path: Path) -> None:
    """A deleted one is begun anew, bytes of any coding stay; one that cannot be written is an error."""
    assert written(tmp_path, result(), before=None).startswith(f"\n\n{card.MARK}\n## Scores")
    path = tmp_path / "checkpoints" / "c" / "README.md"
    path.write_bytes(b"\xff")
    add_scores(tmp_path, kept(result().winner), result())
    assert path.read_bytes().startswith(b"\xff\n\n" + card.MARK.encode())
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"cannot write `.*README.md`"):
        add_scores(tmp_path, kept(result().winner), result())


def test_a_checkpoint_with_scores_is_as_its_manifest_says(sweeping: Sweeping, engine: Make, tmp_path: Path) -> None:
    """The card is no part of what is verified, nor of what answers depend on: the next run asks nothing."""
    engine(by_name(sft=(0.5, 0.1), values_only=(0.6, 0.6)))
    found = sweeping(SPEC)
    place = tmp_path / "out" / found.winner.kept
    assert card.MARK in (place / "README.md").read_text()
    surgery.verify(place)
    made = engine(by_name(sft=(0.5, 0.1), values_only=(0.6, 0.6)))
    assert sweeping(SPEC) == found
    assert not made.answers


def test_last_bits_of_what_was_made_with_others(tmp_path: Path) -> None:
    """Where decompositions were shared the card says so, and nothing where they were not."""
    found = result()
    row = found.row("restore head=40%")
    shared = {name: getattr(row, name) for name in row.__slots__} | {"shared": True}
    rows = tuple(Row(**shared) if each is row else each for each in found.rows)
    assert SHARED in written(tmp_path / "a", replace(found, rows=rows))
    assert SHARED not in written(tmp_path / "b", found)
