"""What every task inherits: parts held apart, examples in a fixed order, retries; and the draws beneath."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evalkit.draw import Draw
from evalkit.errors import TaskError
from evalkit.task import CORRECT, PARTS, Data, Example, Grade, Task, Turn, part_of
from surgery.errors import SurgeryError


class Doubling(Task):
    """Double a number below `size`; out of distribution, it is negative. Odd draws come to nothing."""

    name: ClassVar[str] = "doubling"
    version: ClassVar[int] = 1

    size: int = 1000

    def draw(self, split: str, draw: Draw) -> Data | None:
        number = draw.below(self.size)
        return None if number % 2 else {"number": number if split == "id" else -number}

    def key(self, data: Data) -> str:
        return str(abs(data["number"]) // 10)

    def question(self, data: Data) -> str:
        return f"Twice {data['number']}?"

    def grade(self, data: Data, answer: str) -> Grade:
        right = answer == self.reference(data)
        return Grade(CORRECT, 1.0, "Right.") if right else Grade("wrong value", 0.0, "That is wrong.")

    def reference(self, data: Data) -> str:
        return str(2 * data["number"])


def test_examples_are_pinned() -> None:
    """The same seed gives the same examples on every platform and in every version of Python."""
    assert [example.data["number"] for example in Doubling().examples("id", 6)] == [558, 694, 710, 36, 50, 676]
    assert part_of("general_points", "4,5,7,10") == "train"
    assert part_of("general_points", "3,3,8,8") == "test"
    assert part_of("general_points", "6,6,6,6") == "rl"


def test_draws_are_pinned() -> None:
    """Every kind of draw, likewise."""
    draw = Draw("golden", 0)
    assert [draw.below(1000) for _ in range(8)] == [531, 72, 703, 745, 581, 177, 63, 793]
    assert draw.shuffled(range(8)) == [3, 7, 0, 4, 2, 5, 1, 6]
    assert [draw.between(-3, 3) for _ in range(8)] == [-3, 3, -2, 0, 2, 2, 1, -1]
    assert [draw.choice("abc") for _ in range(8)] == list("baacbaac")


def test_draws_are_even() -> None:
    """All numbers and all orders come up about equally often: chi-square far below its 10^-6 quantile."""
    draw = Draw("even")
    numbers = Counter(draw.between(-2, 3) for _ in range(6000))
    assert sorted(numbers) == [-2, -1, 0, 1, 2, 3]
    assert sum((count - 1000) ** 2 / 1000 for count in numbers.values()) < 36
    orders = Counter("".join(draw.shuffled("abc")) for _ in range(6000))
    assert len(orders) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 36


@given(st.integers(), st.lists(st.integers()))
def test_shuffling_keeps_the_items(seed: int, items: list[int]) -> None:
    """A shuffled list has the same items, and the original is left as it was."""
    before = list(items)
    assert sorted(Draw(seed).shuffled(items)) == sorted(items)
    assert items == before


@given(st.integers(0, 40), st.integers(0, 40), st.integers())
def test_more_examples_begin_with_the_same(n: int, more: int, seed: int) -> None:
    """A larger n only appends; indices count up, and no two examples are alike."""
    few, many = Doubling().examples("id", n, seed), Doubling().examples("id", n + more, seed)
    assert many[:n] == few
    assert [example.index for example in many] == list(range(n + more))
    assert len({example.data["number"] for example in many}) == n + more


def test_seeds_and_splits_differ() -> None:
    """Another seed or split draws other examples."""
    task = Doubling()
    assert task.examples("id", 10, seed=1) != task.examples("id", 10)
    numbers = {abs(example.data["number"]) for example in task.examples("ood", 10)}
    assert numbers != {example.data["number"] for example in task.examples("id", 10)}


def test_parts_share_no_key() -> None:
    """Each key belongs to one part, whatever the split and the seed; together the parts have them all."""
    keys = {
        part: {e.key for split in ("id", "ood") for seed in (0, 1) for e in everything(Doubling(), split, seed, part)}
        for part in PARTS
    }
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 100


def everything(task: Task, split: str, seed: int, part: str) -> list[Example]:
    """All examples of a part: as many as its own error says there are."""
    with pytest.raises(TaskError, match="no more than") as caught:
        task.examples(split, 1000, seed, part)
    return task.examples(split, int(str(caught.value).split("no more than ")[1].split()[0]), seed, part)


def test_shares_are_kept() -> None:
    """Parts have about the shares of the keys that they should, and all of them together are everything."""
    assert sum(PARTS.values()) == 100
    found = Counter(part_of("doubling", str(key)) for key in range(10_000))
    assert set(found) == set(PARTS)
    for part, share in PARTS.items():
        assert abs(found[part] / 100 - share) < 2.5  # five standard deviations


def test_exhaustion() -> None:
    """Asking for more than there are says how many there are, and those can be had."""
    with pytest.raises(TaskError) as caught:
        Doubling(size=40).examples("id", 1000, part="train")
    n = len(everything(Doubling(size=40), "id", 0, "train"))
    assert str(caught.value) == (
        f"doubling: the part `train` of the split `id` has no more than {n} examples; ask for at most that many "
        f"(`--n {n}`)"
    )


def test_as_many_as_there_are() -> None:
    """With `fewer`, all of a part are found where they are fewer than n; none at all is still an error."""
    task = Doubling(size=40)
    every = everything(task, "id", 0, "train")
    assert task.examples("id", 1000, part="train", fewer=True) == every
    assert task.examples("id", 2, part="train", fewer=True) == every[:2]
    with pytest.raises(TaskError, match="`validation` of the split `id` has no examples"):
        Doubling(size=1).examples("id", 1, part="validation", fewer=True)


def test_only_misses_in_a_row_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new example is a new beginning: sixty take more than three hundred misses, and still are found."""
    monkeypatch.setattr("evalkit.task.MISSES", 200)
    assert len(Doubling().examples("id", 60)) == 60


def test_no_examples_at_all() -> None:
    """Where there is not one example, asking for fewer is no advice."""
    with pytest.raises(TaskError, match="`validation` of the split `id` has no examples; choose other parameters"):
        Doubling(size=1).examples("id", 1, part="validation")


def test_none_asked_for() -> None:
    """No examples is a number of examples."""
    assert Doubling().examples("id", 0) == []


def test_unknown_names() -> None:
    """Unknown splits, parts and parameters are errors that suggest the nearest."""
    with pytest.raises(TaskError, match="doubling has no split `odd`; did you mean `ood`"):
        Doubling().examples("odd", 1)
    with pytest.raises(TaskError, match="unknown part `tests`; did you mean `test`") as caught:
        Doubling().examples("id", 1, part="tests")
    assert isinstance(caught.value, SurgeryError)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Doubling.model_validate({"sise": 3})
    with pytest.raises(ValidationError, match="frozen"):
        Doubling().size = 3


def test_prompt_of_the_first_turn() -> None:
    """The first turn is the question, or what stands in for it."""
    task, data = Doubling(), {"number": 4}
    assert task.prompt(data) == ({"role": "user", "content": "Twice 4?"},)
    assert task.prompt(data, question="2 * 4 =") == ({"role": "user", "content": "2 * 4 ="},)


def test_prompt_of_later_turns() -> None:
    """Every failed answer goes back word for word, with its reason as a new turn of the user."""
    task, data = Doubling(), {"number": 4}
    history = [Turn(answer, task.grade(data, answer)) for answer in ("7", " 8")]
    prompt = task.prompt(data, history)
    assert [message["role"] for message in prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert [message["content"] for message in prompt] == [
        "Twice 4?",
        "7",
        "That is wrong. Try again, in the same form.",
        " 8",
        "That is wrong. Try again, in the same form.",
    ]


def test_default_key_is_the_question() -> None:
    """Without a key of its own, every question is a problem of its own."""
    assert Task.key(Doubling(), {"number": 4}) == "Twice 4?"


def test_only_the_right_kind_is_correct() -> None:
    """A grade is correct by its kind, whatever its reward."""
    assert Grade(CORRECT, 0.0, "Right.").correct
    assert not Grade("wrong value", 5.0, "Wrong.").correct
