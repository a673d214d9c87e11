"""What `surgery demo` does: lay the checkpoints out, and run the bundled sweep `demo` on them."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from evalkit.sweeps.progress import Progress
from evalkit.sweeps.result import SweepResult
from evalkit.sweeps.sweep import sweep
from surgery.errors import OutputError
from surgery.unfinished import writing

MODELS = ("base", "inter-sft", "sft", "rl")
SWEEP = "demo"
RESULT = "sweep"  # the sweep's directory, beside the models


def run_demo(out: Path, n: int | None = None, progress: Progress | None = None) -> SweepResult:
    """Copy the models to `out`, sweep them, and leave the result in `out/sweep`. Raises any SurgeryError.

    Run again, it does only what is not done. `n` replaces the sweep's number of examples.
    """
    lay_out(out)
    return sweep(SWEEP, {name: out / name for name in MODELS}, out / RESULT, n=n, progress=progress)


def lay_out(out: Path) -> None:
    """The models as directories in `out`, unless they lie there. Raises OutputError for a directory of other things."""
    with writing(out):
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MODELS[0]).is_dir())):
            raise OutputError(f"`{out}` exists and holds something else; choose another directory")
        out.mkdir(parents=True, exist_ok=True)
        with resources.as_file(resources.files("evalkit.demo") / "checkpoints") as shipped:
            for name in MODELS:
                if (out / name).is_dir():
                    continue
                partial = out / f".{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(shipped / name, partial)
                partial.rename(out / name)
