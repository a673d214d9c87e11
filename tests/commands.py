"""Commands as a user types them, in the process of the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from surgery.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def surgery_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `surgery` with these words: exit code, stdout, stderr. There is never a traceback."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["surgery", *map(str, arguments)])
        monkeypatch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return run
