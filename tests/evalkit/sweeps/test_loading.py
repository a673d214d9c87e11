"""A sweep's file: what is read, and everything that is wrong with it at once, with lines."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import SweepError
from evalkit.sweeps.loading import FOLDER, beside, load
from surgery import bundled
from tests.evalkit.sweeps.conftest import SPEC

WRONG = """\
name: two words
models: [base, sft, sft]
start: rl
variants:
  - recipe: restore-top-20pct
    grid: {head: []}
    girds: {}
  - set: {head: 20%}
averages: [0.5, 0.5, 1]
evaluation:
  task: sums
  n: 0
  seeds: [1, 1]
  part: tests
  splits: [id, id]
objective: {improve: {id: -1}, measure: acuracy, tolerate: {id: -0.1}}
keep: bset
"""


def faults(source: str | Path | dict[str, Any]) -> list[str]:
    """What is wrong with a sweep."""
    with pytest.raises(SweepError) as caught:
        load(source)
    return [str(fault) for fault in caught.value.faults]


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    """Every fault has file, line and path, in the order of the lines, and says what to do."""
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    found = [text.removeprefix(f"{path}:") for text in faults(path)]
    expected = [
        r"1 name: found `two words`; expected one word",
        r"2 models: found `sft` twice; name each once",
        r"6 variants\[0\].grid.head: found an empty list; expected at least 1",
        r"7 variants\[0\].girds: unknown key `girds`; did you mean `grid`\?",
        r"8 variants\[1\]: `recipe` is missing; expected a bundled recipe's name, a file",
        r"9 averages\[2\]: found `1`; expected less than 1",
        r"12 evaluation.n: found `0`; expected 1 or more",
        r"13 evaluation.seeds: found `1` twice; name each once",
        r"14 evaluation.part: found `tests`; expected .*did you mean `test`\?",
        r"15 evaluation.splits: found `id` twice; name each once",
        r"16 objective.improve: found the weights `id -1`; expected 0 or more for each split",
        r"16 objective.measure: found `acuracy`; expected .*did you mean `accuracy`\?",
        r"16 objective.tolerate.id: found `-0.1`; expected 0.0 or more",
        r"17 keep: found `bset`; expected .*did you mean `best`\?",
    ]
    for text, pattern in zip(found, expected, strict=True):
        assert re.match(pattern, text), (pattern, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "rl"}, "`start` is `rl`, and the sweep's models are `base`, `sft`"),
        ({"averages": [0.5, 0.25, 0.5]}, "sweep averages: found `0.5` twice; name each once"),
        ({"models": []}, "sweep models: found an empty list; expected at least 1"),
        ({"variants": []}, "sweep variants: found an empty list; expected at least 1"),
        ({"models": ["ba se"]}, "expected a role's name"),
        ({"objective": {"improve": {"id": 0, "ood": 0}}}, "expected 0 or more for each split, and not 0 for all"),
        ({"objective": {"improve": {}}}, "expected 0 or more for each split, and not 0 for all"),
        ({"objective": {"improve": 3}}, "objective.improve: found `3`; expected text or a map"),
        ({"variants": [{"recipe": 3}]}, "variants[0].recipe: found `3`; expected text or a map"),
        ({"evaluation": {"task": "sums", "n": 2.5}}, "evaluation.n: found `2.5`; expected a whole number"),
        ({"evaluation": {"task": "sums", "n": "24"}}, "evaluation.n: found the text `24`; expected a whole number"),
        ({"evaluation": {}}, "evaluation: `task` is missing; expected a task of `surgery eval --list`"),
    ],
)
def test_one_thing_wrong(change: dict[str, Any], message: str) -> None:
    """One fault is one message, and no other follows from it."""
    (found,) = faults({**SPEC, **change})
    assert message in found


def test_a_parameter_is_set_or_varied() -> None:
    """The same name in `set` and in `grid` is no value that silently wins."""
    (found,) = faults({**SPEC, "variants": [{"recipe": "values-only", "set": {"layers": 1}, "grid": {"layers": [2]}}]})
    assert found == "sweep variants[0].grid: `layers` stands in `set` as well; keep one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the sweep is empty; expected a map with the keys `name`, `models`"),
        ("[1]", "found a list; expected a map"),
        ("name: a\nname: b\n", "`name` is already set on line 1"),
        ("a: [", "a bracket or a quote is not closed"),
        ("x: &a 1\n", "found the YAML anchor"),
    ],
)
def test_no_sweep_at_all(tmp_path: Path, text: str, message: str) -> None:
    """What is no map, or no YAML, is told as for recipes."""
    (tmp_path / "x.yaml").write_text(text)
    assert re.search(message, "\n".join(faults(tmp_path / "x.yaml")))


def test_a_sweep_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest bundled name, or all of them; a directory, and a name that no file can have."""
    monkeypatch.chdir(tmp_path)
    assert faults("restor") == ["found neither a file nor a bundled sweep `restor`; did you mean `restore`?"]
    assert "bundled sweeps: `demo`, `restore`" in faults("xyz")[0]
    assert "cannot be read" in faults(str(tmp_path))[0]
    assert "cannot be read" in faults("a" * 5000)[0]
    assert "cannot be read" in faults("a\0b")[0]


@pytest.mark.parametrize("name", bundled.names(FOLDER))
def test_bundled_sweeps_are_right(name: str) -> None:
    """Each is read, is called as its file is, and says what it does."""
    sweep, source = load(name)
    assert sweep.name == name
    assert sweep.summary
    assert source.origin == f"{name}.yaml"


def test_a_small_file_has_good_defaults() -> None:
    """The last model is the start, averages are tried, the mean of accuracies is improved, the best one stays."""
    sweep, _ = load(SPEC | {"averages": [0.25]})
    assert sweep.start == "sft"
    assert sweep.keep == "best"
    assert sweep.averages == (0.25,)
    assert (sweep.objective.improve, sweep.objective.measure, sweep.loss) == (None, "accuracy", False)
    assert sweep.evaluation.seeds == (0,)
    assert load({key: value for key, value in SPEC.items() if key != "averages"})[0].averages == (0.25, 0.5, 0.75)


def test_files_beside_the_sweep_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then those where the command was run; a name that no file can have is none."""
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
        (place / "a.txt").write_text("")
    (here / "b.txt").write_text("")
    (there / "x.yaml").write_text("name: x")
    monkeypatch.chdir(here)
    with pytest.raises(SweepError):
        load(there / "x.yaml")
    (there / "x.yaml").write_text(bundled.read("restore", FOLDER))
    _, source = load(there / "x.yaml")
    assert beside("a.txt", source) == there / "a.txt"
    assert beside("b.txt", source) == Path("b.txt")
    for name in ("c.txt", "a" * 300, "a\0", ""):
        assert beside(name, source) is None


def test_a_number_without_meaning_in_a_map_is_one_fault() -> None:
    """Not also one of the map around it, which may be text instead; with another fault beside it both are told."""
    with pytest.raises(SweepError) as caught:
        load({**SPEC, "objective": {"improve": {"id": math.nan}, "tolerate": {"id": "much"}}})
    assert [str(fault) for fault in caught.value.faults] == [
        "sweep objective.improve.id: found `nan`; expected a finite number",
        "sweep objective.tolerate.id: found the text `much`; expected a number",
    ]
