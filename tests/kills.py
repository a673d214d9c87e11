"""Kills `surgery.apply_all` in the middle of every system call that changes the disk, and looks at what is left.

Run as a program: the models by role, and a list of [RECIPE, WHOLE (an output that was not disturbed), OUT (which holds
an older output)], all as JSON. For each call: put the older outputs in place, apply with `--overwrite`, kill in the
middle of that call, look, apply again to the end, compare. Prints the number of kills. Each attempt is a fork of this
process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

import surgery
import surgery.executor  # so that each fork has it already
from tests.pairs import files

CALLS = ("pwrite", "write", "copy_file_range", "ftruncate", "rename", "unlink", "mkdir", "rmdir", "symlink")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def deadly(real: Callable[..., Any], name: str, call: int, numbers: Iterator[int]) -> Callable[..., Any]:
    """The function, in the middle of which this process dies when its turn has that number.

    Writes are cut in half, other calls alternate before and after.
    """

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


def _run(models: dict[str, str], variants: list[surgery.Variant]) -> NoReturn:
    torch.set_num_threads(1)
    surgery.apply_all(variants, models, workers=1, overwrite=True)
    os._exit(0)


def run_until(call: int, run: Callable[..., NoReturn], *arguments: Any) -> NoReturn:
    """Run, and die in the middle of the n-th call."""
    numbers = itertools.count(1)
    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name), name, call, numbers))
    Path.write_bytes = deadly(Path.write_bytes, "write_bytes", call, numbers)  # type: ignore[method-assign]
    run(*arguments)


def in_fork(run: Callable[..., NoReturn], *arguments: Any) -> bool:
    """Whether the run lived to its end."""
    pid = os.fork()
    if pid == 0:
        run(*arguments)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), f"a run ended with status {status}"
    return status == 0


def main() -> None:
    """Kill at the first call, the second, and so on, until a run outlives its last."""
    models, rows = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    variants = [surgery.Variant(recipe, out) for recipe, _, out in rows]
    whole = {Path(out): files(Path(undisturbed)) for _, undisturbed, out in rows}
    old = {out: out.rename(out.with_name(f"old-{out.name}")) for out in whole}
    for call in itertools.count(1):
        for out in whole:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(old[out], out)
        lived = in_fork(run_until, call, _run, models, variants)
        if not lived:
            for out, expected in whole.items():
                complete = not out.exists() or files(out) in (files(old[out]), expected)
                assert complete, f"call {call}: {out} is incomplete"
            assert in_fork(_run, models, variants)
        for out, expected in whole.items():
            assert files(out) == expected, f"call {call}: other bytes in {out} than undisturbed"
            left = sorted(path.name for path in out.parent.iterdir() if path.name.lstrip(".").startswith(out.name))
            assert left == [out.name], f"call {call}: left over {left}"
        if lived:
            print(call - 1)
            return


if __name__ == "__main__":
    main()
