"""Formulas of models: what is legal, what they come to, and that nothing hostile gets through."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evalkit.formula import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, Formula, FormulaError, parse

# A tree is written down with more parentheses and spaces than it needs, and evaluated on the side.
Written = tuple[str, Fraction | None, tuple[int, ...]]

OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


def leaf(n: int) -> Written:
    return str(n), Fraction(n), (n,)


def joined(parts: tuple[Written, str, Written, str]) -> Written:
    (left, a, used), operator, (right, b, others), sign = parts
    value = None if a is None or b is None else OPERATIONS[operator](a, b)
    if value is not None and sign == "-":
        value = -value
    return f"{sign}(({left}) {operator}({right}))", value, (*used, *others)


written = st.recursive(
    st.integers(0, 10**MAX_DIGITS - 1).map(leaf),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.sampled_from(["", "-", "+"])).map(joined),
    max_leaves=6,
)


@given(written)
def test_values_are_those_of_the_tree(formula: Written) -> None:
    """What was written down comes back: the numbers in order, and the exact value, or a division by zero."""
    text, value, numbers = formula
    parsed = parse(text + "=12")
    assert parsed.numbers == numbers
    if value is None:
        with pytest.raises(FormulaError, match="divides by zero"):
            parsed.value()
    else:
        assert parsed.value() == value


def python_reads(text: str) -> ast.expr | None:
    """The same text as Python's own parser sees it, or None where it has something besides our arithmetic."""
    try:
        tree = ast.parse(text.strip(" "), mode="eval").body
    except SyntaxError:
        return None
    arithmetic = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub)
    return tree if all(isinstance(node, arithmetic) for node in ast.walk(tree)) else None


def python_value(node: ast.AST) -> Fraction | None:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        value = python_value(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    assert isinstance(node, ast.BinOp)
    sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
    left, right = python_value(node.left), python_value(node.right)
    return None if left is None or right is None else OPERATIONS[sign](left, right)


def value_or_none(formula: Formula) -> Fraction | None:
    try:
        return formula.value()
    except FormulaError:
        return None


@given(st.text("1289+-*/() ", max_size=14) | st.lists(st.sampled_from("12+-*/()"), max_size=11).map("".join))
def test_the_same_is_legal_as_in_python(text: str) -> None:
    """On texts of our alphabet, Python's parser and ours agree on what is legal and what it comes to."""
    assume(not re.search(rf"\d{{{MAX_DIGITS + 1}}}", text))
    tree = python_reads(text)
    try:
        formula = parse(text)
    except FormulaError:
        assert tree is None
    else:
        assert tree is not None
        assert value_or_none(formula) == python_value(tree)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever the text: a formula with an exact value or a division by zero, or a FormulaError of one line."""
    reason = ""
    try:
        formula = parse(text)
    except FormulaError as error:
        reason = str(error)
    else:
        assert formula.numbers
        value_or_none(formula)
    assert reason.isprintable()
    assert len(reason) < 100


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/(3-8/3)", 24),
        ("(7-5)*10+4=24", 24),
        ("24", 24),
        ("0", 0),
        ("2-3-4", -5),
        ("24/4/3", 2),
        ("2+3*4", 14),
        ("12/3*2", 8),
        ("-3+27", 24),
        ("2*-3", -6),
        ("--3", 3),
        ("+-+3", -3),
        ("-2*3-1", -7),
        ("2--3", 5),
        ("2/-3*4", Fraction(-8, 3)),
        ("1/3", Fraction(1, 3)),
        ("  ( 1 +2 ) * 3 = 9 = 8 = bananas", 9),
        ("999999999*999999999", 999999998000000001),
    ],
)
def test_values(text: str, value: Fraction) -> None:
    """Precedence, association, signs; only what stands left of the first `=` counts."""
    assert parse(text).value() == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("=24", "it is empty"),
        ("()", "it has `)` where a number should stand"),
        ("+", "it breaks off after `+`"),
        ("- -", "it breaks off after `-`"),
        ("2*", "it breaks off after `*`"),
        ("(2", "a `(` is never closed"),
        ("2)", "a `)` has no `(`"),
        (")2(", "it has `)` where a number should stand"),
        ("(2+)", "it has `)` where a number should stand"),
        ("*2", "it has `*` where a number should stand"),
        ("9**9**9", "it has `*` where a number should stand"),
        ("7//2", "it has `/` where a number should stand"),
        ("2(3)", "an operator is missing between `2` and `(`"),
        ("(2)3", "an operator is missing between `)` and `3`"),
        ("(2)(3)", "an operator is missing between `)` and `(`"),
        ("1 0", "an operator is missing between `1` and `0`"),
        ("1.0", "`.` is none of"),
        ("1e5", "`e` is none of"),
        ("1_0", "`_` is none of"),
        ("0x10", "`x` is none of"),
        ("007", "the number `007` begins with 0"),
        ("00", "the number `00` begins with 0"),
        ("1,2", "`,` is none of"),
        ("2\n+3", "`\\n` is none of"),
        ("2\t+3", "`\\t` is none of"),
        ("2\u00a0+3", "is none of"),
        ("2\x00", "`\\x00` is none of"),
        ("2^3", "`^` is none of"),
        ("5!", "`!` is none of"),
        ("7%4", "`%` is none of"),
        ("2×3", "`×` is none of"),
        ("2−3", "`−` is none of"),
        ("２+3", "`２` is none of"),
        ("²", "`²` is none of"),
        ("٣+1", "`٣` is none of"),
        ("½", "`½` is none of"),
        ("\ud800", "`\\ud800` is none of"),
        ("1+1＝2", "`＝` is none of"),
        ("__import__('os')", "`_` is none of"),
        ("1 if 1 else 2", "`i` is none of"),
        ("1" * (MAX_DIGITS + 1), f"a number has more than {MAX_DIGITS} digits"),
        ("1" * MAX_LENGTH, f"a number has more than {MAX_DIGITS} digits"),
        ("1" * (MAX_LENGTH + 1), f"it is longer than {MAX_LENGTH} characters"),
        ("(" * 10_000_000, f"it is longer than {MAX_LENGTH} characters"),
        (" " * (MAX_LENGTH + 1) + "=1", f"it is longer than {MAX_LENGTH} characters"),
        ("(" * (MAX_DEPTH + 1), f"it is nested more than {MAX_DEPTH} deep"),
        ("-" * (MAX_DEPTH + 1) + "1", f"it is nested more than {MAX_DEPTH} deep"),
        ("1+(" * (MAX_DEPTH // 2) + "1*2", f"it is nested more than {MAX_DEPTH} deep"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_illegal(text: str, reason: str) -> None:
    """What is not our arithmetic is refused with a clause that names it, before anything is computed."""
    with pytest.raises(FormulaError) as caught:
        parse(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "0/0", "1/(1/(1/0))"])
def test_division_by_zero(text: str) -> None:
    """A division by zero is legal to read, so that its numbers can be checked, and has no value."""
    formula = parse(text)
    with pytest.raises(FormulaError, match=r"^it divides by zero$"):
        formula.value()


def test_limits_are_reached() -> None:
    """A formula at the limits is read: they stand just behind it."""
    assert parse("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value() == 1
    assert parse("1+" * (MAX_LENGTH // 2 - 1) + "11=" + "!" * 10_000_000).value() == MAX_LENGTH // 2 + 10
    assert parse("9" * MAX_DIGITS).value() == 10**MAX_DIGITS - 1
