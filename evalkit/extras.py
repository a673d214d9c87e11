"""What comes with an extra and may not be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evalkit.errors import EngineError


@contextmanager
def installed(command: str, extras: str) -> Iterator[None]:
    """One message for a library that `surgery COMMAND` needs and that is not installed. Raises EngineError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EngineError(
            f"`surgery {command}` needs `{error.name}`, which is not installed: pip install 'surgery[{extras}]'"
        ) from error
