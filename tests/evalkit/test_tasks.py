"""Tasks by name, with parameters as a command line gives them."""

from __future__ import annotations

import pytest

from evalkit.errors import TaskError
from evalkit.tasks import TASKS, make_task
from evalkit.tasks.general_points import GeneralPoints


def test_names_agree() -> None:
    """A task is called what the table calls it, and says what it is."""
    for name, task in TASKS.items():
        assert task.name == name
        assert task.__doc__
        assert task.version >= 1


def test_text_becomes_values() -> None:
    """Parameters come as text or as values."""
    assert make_task("general_points", {"cards": "5", "target": 36}) == GeneralPoints(cards=5, target=36)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("genral_points", {}, "unknown task `genral_points`; did you mean `general_points`?"),
        ("chess", {}, "unknown task `chess`; the tasks: `general_points`, `general_points_steps`, `matrix_rank`, "),
        ("general_points", {"cards": "x"}, "--set cards: found the text `x`; expected a whole number"),
        ("general_points", {"card": "4"}, "--set card: unknown key `card`; did you mean `cards`?"),
        ("general_points", {"cards": "[4"}, "not valid YAML"),
        ("general_points", {"cards": "{a: 1, a: 2}"}, "--set cards={a: 1, a: 2}: "),
        ("jsonl", {}, "jsonl: `id` is missing; expected file of the records"),
        ("jsonl", {"id": "7"}, "7: cannot be read: No such file or directory"),
        ("jsonl", {"id": 7}, "--set id: found `7`; expected text"),
    ],
)
def test_mistakes(name: str, settings: dict[str, object], message: str) -> None:
    """Each is told with what was meant."""
    with pytest.raises(TaskError) as caught:
        make_task(name, settings).examples("id", 1)
    assert message in str(caught.value)


def test_all_mistakes_at_once() -> None:
    """Two wrong parameters are two lines."""
    with pytest.raises(TaskError) as caught:
        make_task("general_points", {"cards": "9", "trget": "3"})
    assert len(str(caught.value).splitlines()) == 2
