from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from evalkit.graders import GRADERS, GraderName, fault, grade
from evalkit.graders import choice as choice_grader
from evalkit.graders.choice import LETTERS, MARKS
from evalkit.graders.pattern import SECONDS
from evalkit.graders.verdict import MAX_ANSWER, MAX_VALUE, SEARCHED
from evalkit.task import CORRECT, UNPARSABLE

CITIES = ("Paris", "London", "a dog", "Rome")


@pytest.mark.parametrize(
    ("answer", "reference", "kind"),
    [
        ("Paris", "Paris", CORRECT),
        ("  the\n\tcapital  city ", "the capital city", CORRECT),
        ("Par\u00a0is", "Par  is", CORRECT),
        ("paris", "Paris", "wrong value"),
        ("Paris.", "Paris", "wrong value"),
        ("", "Paris", UNPARSABLE),
        (" \n", "Paris", UNPARSABLE),
    ],
)
def test_exact_ignores_white_space_alone(answer: str, reference: str, kind: str):
    """Runs of white space are one space; letter case and punctuation count."""
    assert grade("exact", answer, [reference]).kind == kind


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("42", "42"),
        ("The 3 boxes hold 42.", "42"),
        ("3.50", "7/2"),
        ("It is 1,000, no more", "1000"),
        ("1,234,567.50", "2469135/2"),
        ("1{,}000", "1000"),
        ("1\\,000 m", "1000"),
        ("1\u202f000", "1000"),
        ("7 / 2", "7/2"),
        ("-7/2", "-7/2"),
        ("3 1/2", "7/2"),
        ("\\frac{7}{2}", "7/2"),
        ("-\\dfrac{3}{4}", "-3/4"),
        (".5", "1/2"),
        ("so...5", "5"),
        ("50%", "50"),
        ("$5.00", "5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("x=\u22124", "-4"),
        ("10-3", "3"),
        ("1e3", "1000"),
        ("1.5 \\times 10^{3}", "1500"),
        ("2 × 10^-2", "1/50"),
        ("5 km", "5"),
        ("5!", "5"),
        ("25 m^2", "25"),
        ("45^\\circ", "45"),
        ("2^10 = 1024", "1024"),
        ("\\boxed{42} after 3 steps", "42"),
        ("\\boxed{x = -4}", "-4"),
        ("\\boxed{\\frac{7}{2}}", "7/2"),
        ("\\boxed{1} no: \\boxed{2}", "2"),
        ("first 5\n#### 72\nthen 9", "72"),
        ("#### 3. Conclude\nIt is 17", "17"),
        ("The answer is 5. I used 2 steps.", "5"),
        ("The answer is **$5**, of 9", "5"),
        ("The answer is 2 + 3 = 5, of 9", "5"),
        ("The answer is 2^3 = 8, of 9", "8"),
        ("Answer: x = 7, of 9", "7"),
        ("the answer is clear: 3 and then 4", "4"),
    ],
)
def test_numeric_finds_the_number_that_is_meant(answer: str, value: str):
    """A marked number counts before the last one, and every usual way of writing a number is read exactly."""
    found = grade("numeric", answer, [value])
    assert (found.kind, found.value, found.reward) == (CORRECT, value, 1.0)
    assert grade("numeric", answer, ["987654321"]).kind == "wrong value"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "none",
        "٣ ４２ ²",
        "1,00",
        "1.2.3",
        "12/05/2024",
        "1/0",
        "\\frac{1}{0}",
        "2^10",
        "2\\sqrt{3}",
        "\\frac{\\pi}{2}",
        "\\boxed{(3, 5)}",
        "\\boxed{\\text{none}}, not 5",
        "1e999999999",
        "1e-999999999",
        "1 x 10^999999999",
        "1e" + "9" * 5000,
        "9" * 5000,
        "H2O",
        "__import__('os')",
    ],
)
def test_numeric_refuses_what_is_doubtful_or_huge(answer: str):
    """No number, one of two readings, a part of an expression, or one without bounds: unparsable, with a reason."""
    found = grade("numeric", answer, ["5"])
    assert (found.kind, found.reward, found.value) == (UNPARSABLE, 0.0, None)
    assert found.reason.endswith(".")


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_numeric_is_equality_of_fractions(a: Fraction, b: Fraction):
    """An answer is right exactly if it is the same fraction, however near another is."""
    assert grade("numeric", f"The answer is {a}.", [str(b)]).correct == (a == b)
    assert grade("numeric", f"We get \\boxed{{{a}}}.", [str(a)]).correct


def test_numeric_never_rounds():
    """One third is not its decimals, and a difference beyond float64 is seen."""
    assert not grade("numeric", "0.3333333333333333333", ["1/3"]).correct
    assert not grade("numeric", "9007199254740993", ["9007199254740992"]).correct
    assert grade("numeric", "0.1000000000000000055511151231257827", ["0.1"]).kind == "wrong value"


@pytest.mark.parametrize("kind", ["exact", "numeric", "regex"])
def test_any_of_several_references_is_right(kind: GraderName):
    """A list of references is met by each of them."""
    assert grade(kind, "7", ["5", "7"]).correct
    assert not grade(kind, "6", ["5", "7"]).correct


def test_regex_searches_and_stops_in_time():
    """A pattern is searched anywhere; one that runs for ever gives a reason, and does not hide another's match."""
    assert grade("regex", "the CAPITAL is paris", ["(?i)capital.*Paris"]).value == "CAPITAL is paris"
    assert grade("regex", "the capital", ["Paris"]).kind == "wrong value"
    hostile = "a" * 60 + "b"
    slow = grade("regex", hostile, ["(a|aa)+$"])
    assert slow.kind == UNPARSABLE
    assert "longer than" in slow.reason
    assert grade("regex", hostile, ["(a|aa)+$", "b$"]).correct


def test_patterns_share_their_time(monkeypatch: pytest.MonkeyPatch):
    """However many patterns a record has, one answer takes no longer than one search may."""
    given = []

    def search(*_: str, timeout: float) -> Any:
        given.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(regex, "search", search)
    assert grade("regex", "a", ["(a|aa)+$"] * 10).kind == UNPARSABLE
    assert sum(given) == pytest.approx(SECONDS)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (b) ", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B. London", "B"),
        ("B) London\nA) is wrong since ...", "B"),
        ("london", "B"),
        ("The capital is London.", "B"),
        ("The answer is B", "B"),
        ("the answer is b.", "B"),
        ("The answer is A because it is", "A"),
        ("The answer is A Paris", "A"),
        ("The answer is (C) a dog", "C"),
        ("the answer is a dog", "C"),
        ("Answer: A dog", "C"),
        ("Answer: D\n\nA is wrong.", "D"),
        ("A) Paris is not it; so the answer is D.", "D"),
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("#### B", "B"),
        ("The correct option is B", "B"),
        ("I would take option B here", "B"),
        ("Well, it is A.", "A"),
        ("A dog is what I see", "C"),
        ("A", "A"),
    ],
)
def test_choice_is_read_off_letter_or_text(answer: str, letter: str):
    """The letter or the text of one choice, however it is set off; a conclusion counts before a mention."""
    found = grade("choice", answer, [letter], CITIES)
    assert (found.kind, found.value) == (CORRECT, letter)
    other = "A" if letter != "A" else "B"
    assert grade("choice", answer, [other], CITIES).kind == "wrong value"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A man walks in",
        "Answer: A cat",
        "The answer is A cat",
        "A cat and I saw it",
        "E",
        "I",
        "Ａ",
        "(A) or (B)",
        "Answer: A or B",
        "Answer: B, C",
        "Paris or London",
        "It is not London",
        "It isn't London",
        "The U.S.A.",
        "the answer is U.K.",
        "Londoners",
    ],
)
def test_choice_does_not_guess(answer: str):
    """Articles, pronouns, several choices, a denial, letters beyond the list: unparsable."""
    assert grade("choice", answer, ["A"], CITIES).kind == UNPARSABLE


def test_choice_with_texts_that_hold_each_other():
    """The longer of two texts that begin alike is meant where it stands."""
    choices = ["10", "10 km", "100"]
    assert [grade("choice", text, ["A"], choices).value for text in ("It is 10 km.", "It is 10.", "100")] == [*"BAC"]
    assert grade("choice", "The answer is 10 km", ["A"], choices).value == "B"


@given(
    st.lists(st.text("abcxyz ", min_size=3), min_size=2, max_size=26, unique_by=lambda text: " ".join(text.split())),
    st.data(),
)
def test_choice_letter_alone_is_always_understood(choices: list[str], data: st.DataObject):
    """Each letter of the list, alone or concluded with, names its choice, whatever the texts are."""
    letter = data.draw(st.sampled_from(LETTERS[: len(choices)]))
    for answer in (letter, f"The answer is ({letter}).", f"\\boxed{{{letter}}}"):
        assert grade("choice", answer, [letter], choices).correct


@given(st.text("a-B_ ß"), st.text("a-B_ ß", min_size=1))
def test_choice_finds_whole_words_alone(answer: str, text: str):
    """A choice's text occurs where the regular expression for whole words finds it."""
    words, rest = " ".join(text.split()).casefold(), " ".join(answer.split()).casefold()
    expected = {0} if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", rest) else set()
    assert choice_grader._texts(answer, [words]) == expected


def test_end_of_a_long_answer_counts(monkeypatch: pytest.MonkeyPatch):
    """Numbers and choices are looked for in the last characters and behind the last marks, and texts folded once."""
    assert grade("choice", "The answer is B. " + "." * SEARCHED, ["B"], CITIES).kind == UNPARSABLE
    assert grade("choice", "The answer is B. " + "." * SEARCHED + "The answer is C.", ["C"], CITIES).correct
    assert grade("numeric", "The answer is 5. " + "." * SEARCHED, ["5"]).kind == UNPARSABLE
    assert grade("numeric", "The answer is 5. " + "." * SEARCHED + " 6", ["6"]).correct
    looked_at, folded = [], []
    begins, plain = choice_grader._begins, choice_grader._plain
    monkeypatch.setattr(choice_grader, "_begins", lambda *args: looked_at.append(args) or begins(*args))
    monkeypatch.setattr(choice_grader, "_plain", lambda text: folded.append(text) or plain(text))
    assert grade("choice", "answer is " * 1000, ["B"], CITIES).kind == UNPARSABLE
    assert len(looked_at) == MARKS * len(CITIES)
    assert len(folded) < 3 * len(CITIES)


@pytest.mark.parametrize(
    ("grader", "reference", "part"),
    [
        ("exact", " ", "is empty"),
        ("numeric", "three", "is no number"),
        ("numeric", "1e5000", "is no number"),
        ("numeric", "3 apples", "is no number"),
        ("regex", "(", "no regular expression"),
        ("regex", "", "empty pattern"),
        ("regex", "a" * 2000, "at most 1,000"),
        ("choice", "E", "from A to D"),
        ("choice", "Berlin", "none of the choices"),
    ],
)
def test_faulty_references_are_named(grader: GraderName, reference: str, part: str):
    """What a grader could never find right is a fault of the data."""
    assert part in str(fault(grader, reference, CITIES))


def test_faultless_references():
    """Numbers in any form that answers may have, patterns, letters and texts of choices."""
    for reference in ("1,000", "-3.5", "7/2", "1e6", "50%", "$3"):
        assert fault("numeric", reference) is None
    assert fault("choice", "B", CITIES) is None
    assert fault("choice", "London", CITIES) is None
    assert "change that text" in str(fault("choice", "A", ["B", "A"]))


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize(
    "piece", ["1", "1,", "1/", "1e", "1 1/", "(", "{", "\\boxed{", "answer: ", "####\n", "A) ", ".", " ", "-", "\x00"]
)
def test_long_answers_end_soon(grader: GraderName, piece: str):
    """As many characters as are looked at, of any repeated piece, take no more than linear time."""
    answer = (piece * MAX_ANSWER)[:MAX_ANSWER]
    found = grade(grader, answer, ["A"] if grader != "numeric" else ["1"], CITIES)
    assert found.value is None or len(found.value) <= MAX_VALUE + 1
    assert grade(grader, answer + "1", ["1"], CITIES).kind == UNPARSABLE


@given(st.sampled_from(GRADERS), st.text())
def test_any_text_gets_a_grade(grader: GraderName, answer: str):
    """No answer makes a grader fail, and no reason tells the reference."""
    reference = {"exact": "secret", "numeric": "31337", "regex": "secret", "choice": "B"}[grader]
    found = grade(grader, answer, [reference], CITIES)
    assert found.correct or reference not in found.reason or reference in answer or grader == "choice"
    assert found.reward == (1.0 if found.correct else 0.0)


@pytest.mark.parametrize(
    "answer", ["-2", "2/0", "4/2", "2.0001", "It is -2", "The answer is -2.", "answer: 2.5", "1,2"]
)
def test_a_number_among_choices_is_a_whole_number(answer: str) -> None:
    """A choice that is a number is not found within another number."""
    assert grade("choice", answer, ["B"], ["x", "2"]).kind == UNPARSABLE


@pytest.mark.parametrize("answer", ["2", "It is 2.", "The answer is 2, of course.", "answer: 2", "so (2)", "1 + 1 = 2"])
def test_a_number_among_choices_is_found(answer: str) -> None:
    """Where it stands alone it is."""
    assert grade("choice", answer, ["B"], ["x", "2"]).correct
