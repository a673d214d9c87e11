"""Kills `surgery.apply` in the middle of every system call that changes the disk, and looks at what is left.

Run as a program: RECIPE (JSON), models, WHOLE (an output that was not disturbed), OUT (which holds an older output).
For each call: put the older output in place, apply with `--overwrite`, kill in the middle of that call, look, apply
again to the end, compare. Prints the number of kills. Each attempt is a fork of this process, which has imported
everything and computed nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

import surgery
import surgery.executor  # so that each fork has it already
from tests.pairs import files

CALLS = ("pwrite", "write", "copy_file_range", "ftruncate", "rename", "unlink", "mkdir", "rmdir")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _run(recipe: dict[str, Any], models: list[str], out: str) -> NoReturn:
    torch.set_num_threads(1)
    surgery.apply(recipe, models, out, workers=1, overwrite=True)
    os._exit(0)


def _run_until(call: int, recipe: dict[str, Any], models: list[str], out: str) -> NoReturn:
    """Apply, and die in the middle of the n-th call: writes are cut in half, other calls alternate before and after."""
    numbers = itertools.count(1)

    def deadly(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(numbers) != call:
                return real(*arguments, **options)
            try:
                if name in ("pwrite", "write", "write_bytes"):
                    target, data, *position = arguments
                    real(target, memoryview(data)[: len(data) // 2], *position)
                elif call % 2:
                    real(*arguments, **options)
            finally:
                _die()

        return wrapped

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name), name))
    Path.write_bytes = deadly(Path.write_bytes, "write_bytes")  # type: ignore[method-assign]
    _run(recipe, models, out)


def _in_fork(run: Callable[..., NoReturn], *arguments: Any) -> bool:
    """Whether the run lived to its end."""
    pid = os.fork()
    if pid == 0:
        run(*arguments)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), f"a run ended with status {status}"
    return status == 0


def main() -> None:
    """Kill at the first call, the second, and so on, until a run outlives its last."""
    recipe, models = json.loads(sys.argv[1]), sys.argv[2:-2]
    whole, out = Path(sys.argv[-2]), Path(sys.argv[-1])
    old = out.rename(out.with_name("old"))
    for call in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(old, out)
        lived = _in_fork(_run_until, call, recipe, models, str(out))
        if not lived:
            assert not out.exists() or files(out) in (files(old), files(whole)), f"call {call}: OUT is incomplete"
            assert _in_fork(_run, recipe, models, str(out))
        assert files(out) == files(whole), f"call {call}: other bytes than undisturbed"
        left = sorted(path.name for path in out.parent.iterdir() if path.name.lstrip(".").startswith("out"))
        assert left == ["out"], f"call {call}: left over {left}"
        if lived:
            print(call - 1)
            return


if __name__ == "__main__":
    main()
