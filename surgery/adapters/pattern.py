"""Regular expressions of module names that come from a file nobody vouches for, matched without backtracking.

Python's `re` tries one way after the other, which for `(a+)+$` takes time exponential in the length of a name. The
engine that pydantic validates with takes time linear in it, and refuses expressions that are too large.
"""

from __future__ import annotations

import re
import warnings
from typing import Annotated

LONGEST = 1_000  # characters; names of modules have a tenth
_UNLIKE = re.compile(r"[*+?}]\+|\{,|\n|\\[<>]|\\b\{")  # what both engines take, and understand differently
_FAULT = (
    "is no pattern of names that is understood here; expected names, `.`, `[...]`, `(...)`, `|`, `^`, `$` and the "
    "repetitions `*`, `+`, `?` and `{m,n}`"
)


class Pattern:
    """An expression that a whole name, or its end after a dot, may match, as PEFT has it.

    Assertions, back references, flags, and what is too large are refused. Raises ValueError.
    """

    def __init__(self, text: str) -> None:
        from pydantic import StringConstraints, TypeAdapter  # where names alone are looked up it is not wanted
        from pydantic_core import SchemaError

        if len(text) > LONGEST:
            raise ValueError(f"has {len(text):,} characters; expected {LONGEST:,} at most")
        whole = rf"(?:.*\.)?(?:{text})"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of what Python may understand differently one day
                for each in (text, whole):
                    re.compile(each)
            TypeAdapter(Annotated[str, StringConstraints(pattern=text)])
            self._whole = TypeAdapter(Annotated[str, StringConstraints(pattern=rf"\A{whole}\z")])
        except (re.error, RecursionError, FutureWarning, SchemaError):
            raise ValueError(_FAULT) from None
        if _UNLIKE.search(text):
            raise ValueError(_FAULT)

    def matches(self, name: str) -> bool:
        """Whether it means the module of this name."""
        from pydantic import ValidationError

        try:
            self._whole.validate_python(name)
        except ValidationError:
            return False
        return True
