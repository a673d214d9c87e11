"""YAML text to plain data."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import RecipeError
from surgery.source import text_fault
from surgery.yaml_source import read_yaml

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
text = st.text(max_size=12).filter(lambda value: text_fault(value) is None)
plain = st.recursive(
    scalars | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


def refused(content: str | bytes) -> str:
    """The message of the one fault that ends the reading."""
    with pytest.raises(RecipeError) as caught:
        read_yaml(content, "r.yaml")
    assert len(caught.value.faults) == 1
    return str(caught.value)


def wrong(content: str) -> list[str]:
    """The messages of what is wrong with single values."""
    source = read_yaml(content, "r.yaml")
    return [str(fault) for fault in source.faults(source.mistakes)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20%", "20%"),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'true'", "true"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-3", -3),
        ("0-9", "0-9"),
        ("first 25%", "first 25%"),
        ("[0-4, 20-27]", ["0-4", "20-27"]),
        ("|\n  a\n  b", "a\nb\n"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    """Only the words and numbers of YAML 1.2 are more than text; `yes`, dates and sexagesimals are text."""
    data = read_yaml(f"k: {text}\n", "r.yaml").data
    assert data == {"k": value}
    assert isinstance(data, dict)
    assert type(data["k"]) is type(value)


def test_lines() -> None:
    """Every key and list item has its line; a value on the next line has its key's."""
    text = "# comment\nname: x\nsteps:\n  - op: a\n    head:\n      20%\n  -\n    op: b\n"
    assert read_yaml(text, "r.yaml").lines == {
        (): 2,
        ("name",): 2,
        ("steps",): 3,
        ("steps", 0): 4,
        ("steps", 0, "op"): 4,
        ("steps", 0, "head"): 5,
        ("steps", 1): 8,
        ("steps", 1, "op"): 8,
    }


@given(plain)
def test_json_is_yaml(data: object) -> None:
    """Plain data written as JSON is read back, quoted text staying text."""
    text = json.dumps(data)
    source = read_yaml(text, "r.yaml")
    assert source.data == data
    assert not source.mistakes


def test_keys_are_text() -> None:
    """A key is what is written, never a number or a boolean, so that no two spellings fall together."""
    assert read_yaml("1: a\ntrue: b\n~: c\n", "r.yaml").data == {"1": "a", "true": "b", "~": "c"}


def test_byte_order_mark_and_line_endings() -> None:
    """A UTF-8 byte order mark and Windows line endings are no fault."""
    source = read_yaml(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "r.yaml")
    assert source.data == {"a": 1, "b": 2}
    assert source.lines["b",] == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\n\n"])
def test_empty(text: str) -> None:
    """An empty document is None, without a fault."""
    source = read_yaml(text, "r.yaml")
    assert source.data is None
    assert not source.mistakes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a:\n\t- b\n", "r.yaml:2: not valid YAML at column 1: .*; indent with spaces"),
        (
            "a: b: c\n",
            "r.yaml:1: not valid YAML at column 5: mapping values .*; put a value that holds a colon in quotes",
        ),
        ("a: [1,\n", r"r.yaml:2: not valid YAML at column 1: .*; a bracket or a quote is not closed"),
        ("a: 'x\n", "r.yaml:2: not valid YAML at column 1: .*; a quote is not closed"),
        ("a: %20\n", "r.yaml:1: not valid YAML at column 4: .*; put the value in quotes"),
        ("a: @x\n", "r.yaml:1: not valid YAML at column 4: .*; put the value in quotes"),
        ("- a\nb: c\n", "r.yaml:2: not valid YAML at column 1: .*; the indentation does not line up"),
        ('a: "\\UFFFFFFFF"\n', "r.yaml:1: not valid YAML at or after this line: .*"),
        ("%YAML 9.9\n---\na: 1\n", "r.yaml:1: not valid YAML at column 1: .*"),
        (b"a: 1\nb: \xff\n", "r.yaml:2: found the byte 0xff, which is not UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "r.yaml:1: found UTF-16; save the file as UTF-8"),
        (b"\x80\x02}q\x00.", "r.yaml:1: found the byte 0x80, which is not UTF-8; save the file as UTF-8"),
        (b"PK\x03\x04", r"r.yaml:1: found the control character U\+0003; expected a text file"),
        (b"a: 1\n\x00", r"r.yaml:2: found the control character U\+0000; expected a text file"),
        ("a: 1\n" + "x" * 20_001, "r.yaml:2: a line of 20,001 characters; expected at most 20,000"),
        ("a: 1\n" * 250_000, "r.yaml:1: larger than 1,000,000 bytes; expected a file written by hand"),
        ("- a\n" * 100_000, "r.yaml:10000: more than 10,000 values; expected a file written by hand"),
        ("[" * 10_000, "r.yaml:1: nested deeper than 32 levels"),
        ("{a: " * 4_000, "r.yaml:1: nested deeper than 32 levels"),
        ("? " * 9_000, "r.yaml:1: nested deeper than 32 levels"),
        ("- " * 9_000, "r.yaml:1: nested deeper than 32 levels"),
    ],
)
def test_nothing_to_go_on_with(content: str | bytes, message: str) -> None:
    """Syntax errors, other encodings, binary files and excess end the reading with one fault at its line."""
    assert re.fullmatch(message, refused(content))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("a: 1\nb: 2\na: 3\n", ["r.yaml:3 a: `a` is already set on line 1 and again on line 3; keep one"]),
        (
            "s:\n - {x: 1, x: 2}\n",
            ["r.yaml:2 s[0].x: `x` is already set on line 2 and again on line 2; keep one"],
        ),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            [
                (
                    "r.yaml:1 a: found the YAML tag `tag:yaml.org,2002:python/object/apply:os.system`; "
                    "expected a value without a tag"
                )
            ],
        ),
        ("a: !x 1\n", ["r.yaml:1 a: found the YAML tag `!x`; expected a value without a tag"]),
        (
            "a: &x 1\n",
            ["r.yaml:1 a: found the YAML anchor `&x`; for a value that is used twice declare a parameter"],
        ),
        (
            "t: [*.mlp.*]\n",
            [
                (
                    "r.yaml:1 t[0]: found the YAML alias `*.mlp.*`; put a glob that starts with `*` in quotes; "
                    "for a value that is used twice declare a parameter"
                )
            ],
        ),
        ("w:\n - .nan\n", ["r.yaml:2 w[0]: found `.nan`; expected a finite number"]),
        ("w: -.inf\n", ["r.yaml:1 w: found `-.inf`; expected a finite number"]),
        ("w: 1e309\n", ["r.yaml:1 w: found `1e309`; expected a finite number"]),
        (
            "n: 99999999999999999999\n",
            ["r.yaml:1 n: found an integer of 20 digits; expected at most 9223372036854775807"],
        ),
        (f"n: {'9' * 9000}\n", ["r.yaml:1 n: found an integer of 9000 digits; expected at most 9223372036854775807"]),
        ("t: |\n" + " x\n" * 6000, ["r.yaml:1 t: a value of 12,000 characters; expected at most 10,000"]),
        ('t: "\\uD800"\n', ["r.yaml:1 t: found the character U+D800; expected printable text"]),
        ("? [a]\n: b\n", ["r.yaml:1: found a key that is not plain text; expected a name"]),
        ("? {a: b}\n: c\n", ["r.yaml:1: found a key that is not plain text; expected a name"]),
        ("a: 1\n---\nb: 2\n", ["r.yaml:2: a second document starts here; expected one"]),
        ("%YAML 1.1\n---\na: 1\n", ["r.yaml:2: found a `%YAML` directive of another version; expected YAML 1.2"]),
    ],
)
def test_single_values(text: str, messages: list[str]) -> None:
    """What is wrong with one value is noted at its line, and the reading goes on."""
    assert wrong(text) == messages


def test_all_at_once() -> None:
    """Every wrong value of a document is noted, and the right ones are read."""
    source = read_yaml("a: .inf\nb: !x 1\nc: [1, .nan]\nd: 2\n", "r.yaml")
    assert [mistake.path for mistake in source.mistakes] == [("a",), ("b",), ("c", 1)]
    assert source.data == {"a": None, "b": "1", "c": [1, None], "d": 2}


def test_alias_bombs_do_not_grow() -> None:
    """Anchors are not expanded: a billion laughs stay as small as their text."""
    text = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True))
    source = read_yaml(text + "z: &z [*z]\n", "r.yaml")
    assert len(source.mistakes) == 8 + 14 + 2
    assert source.data == {"a": ["x", "x"], **{c: [None, None] for c in "bcdefgh"}, "z": [None]}


pieces = st.sampled_from(
    [
        *"{}[]:,-?&*!|>'\"%@`#~\n\t \\",
        "a",
        "1",
        ": ",
        "\n  ",
        "- ",
        "&a",
        "*a",
        "!!str",
        "---\n",
        "...\n",
        "<<",
        "\\x",
        "\\U",
    ]
)


@settings(max_examples=300)
@given(st.lists(pieces, max_size=30).map("".join) | st.text(max_size=50) | st.binary(max_size=50))
def test_any_input_is_read_or_refused(content: str | bytes) -> None:
    """Whatever the bytes, the outcome is plain data or a RecipeError that names the file."""
    try:
        source = read_yaml(content, "r.yaml")
    except RecipeError as error:
        places = [fault.where for fault in error.faults]
    else:
        places = [fault.where for fault in source.faults(source.mistakes)]
        json.dumps(source.data, allow_nan=False).encode()
    assert all(place.startswith("r.yaml:") for place in places)
