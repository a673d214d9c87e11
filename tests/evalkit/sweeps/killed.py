"""Kills sweeps in the middle of system calls that change the disk, and looks whether they go on to the same result.

Run as a program: the models as JSON, and an empty directory. Prints the number of kills. Each attempt is a fork of this
process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.figure
import matplotlib.style
import torch
from transformers import PreTrainedTokenizerFast

import evalkit.sweeps.scoring
import surgery.executor
from evalkit.sweeps.sweep import sweep
from tests.evalkit.sweeps.conftest import SPEC, TASK, WeighedEngine, nearness
from tests.kills import in_fork, run_until
from tests.pairs import files

HERE_ALREADY = (matplotlib.backends, surgery.executor, PreTrainedTokenizerFast)  # so that no fork has to import them
STEP = 71  # every so many-th call, which is prime to what recurs
SMALL = {**SPEC, "evaluation": {**SPEC["evaluation"], "n": 3, "seeds": [0]}}
MADE = ("checkpoints", "report.json", "rows.jsonl", "pareto.svg", "best")


def _run(models: dict[str, str], out: Path) -> NoReturn:
    torch.set_num_threads(1)
    evalkit.sweeps.scoring.make_engine = lambda *_: WeighedEngine(nearness)  # type: ignore[attr-defined]
    sweep(SMALL, models, out, task=TASK, workers=1)
    os._exit(0)


def _made(out: Path) -> dict[str, bytes]:
    found = files(out)
    return {name: content for name, content in found.items() if name.split("/")[0] in MADE}


def main() -> None:
    """Kill at every 71st call until a run outlives its last."""
    models, place = json.loads(sys.argv[1]), Path(sys.argv[2])
    assert in_fork(_run, models, place / "sweep")
    whole = _made(place / "sweep")
    assert "report.json" in whole
    kept = {path.name for path in (place / "sweep" / "checkpoints").iterdir()}
    for kills, call in enumerate(itertools.count(1, STEP)):
        shutil.rmtree(place / "sweep")
        lived = in_fork(run_until, call, _run, models, place / "sweep")
        if not lived:
            assert in_fork(_run, models, place / "sweep")
        assert _made(place / "sweep") == whole, f"call {call}: not as undisturbed"
        left = {path.name for path in (place / "sweep" / "checkpoints").iterdir()} - kept
        assert not left, f"call {call}: left over {left}"
        if lived:
            print(kills)
            return


if __name__ == "__main__":
    main()
