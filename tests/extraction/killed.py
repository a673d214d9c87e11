"""Kills `surgery.extract_lora` in the middle of every system call that changes the disk, and looks at what is left.

Run as a program: base, model, an adapter that was made undisturbed, and OUT, which holds an older one. For each call:
put the older adapter in place, extract with `--overwrite`, die in the middle of that call, look, extract again to the
end, compare. Prints the number of kills. See `tests.kills`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import torch

import surgery
import surgery.extraction.run  # so that each fork has it already
from tests.kills import in_fork, run_until
from tests.pairs import files


def _run(base: str, model: str, out: Path) -> NoReturn:
    torch.set_num_threads(1)
    surgery.extract_lora(
        base, model, out, rank=2, tensors=["attention", "norm"], save="norm", workers=1, overwrite=True
    )
    os._exit(0)


def main() -> None:
    """Kill at the first call, the second, and so on, until a run outlives its last."""
    base, model = sys.argv[1:3]
    whole, out = files(Path(sys.argv[3])), Path(sys.argv[4])
    old = out.rename(out.with_name(f"old-{out.name}"))
    for call in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(old, out)
        lived = in_fork(run_until, call, _run, base, model, out)
        if not lived:
            assert not out.exists() or files(out) in (files(old), whole), f"call {call}: {out} is incomplete"
            assert in_fork(_run, base, model, out)
        assert files(out) == whole, f"call {call}: other bytes than undisturbed"
        left = sorted(path.name for path in out.parent.iterdir() if path.name.lstrip(".").startswith(out.name))
        assert left == [out.name], f"call {call}: left over {left}"
        if lived:
            print(call - 1)
            return


if __name__ == "__main__":
    main()
