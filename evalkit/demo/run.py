"""What `surgery demo` does: lay the checkpoints out, and run the bundled sweep `demo` on them."""

from __future__ import annotations

import filecmp
import shutil
from importlib import resources
from pathlib import Path

from evalkit.demo.words import findings
from evalkit.sweeps.progress import Progress
from evalkit.sweeps.result import SweepResult
from evalkit.sweeps.sweep import sweep
from surgery.errors import OutputError
from surgery.unfinished import writing

MODELS = ("base", "inter-sft", "sft", "rl")
SWEEP = "demo"
MARK = ".surgery-demo"  # in a directory that is ours to change
RESULT = "sweep"  # the sweep's directory, beside the models


def run_demo(out: Path, n: int | None = None, progress: Progress | None = None) -> SweepResult:
    """Copy the models to `out`, sweep them, and leave the result in `out/sweep`. Raises any SurgeryError.

    Run again, it does only what is not done. `n` replaces the sweep's number of examples.
    """
    lay_out(out)
    models = {name: out / name for name in MODELS}
    return sweep(SWEEP, models, out / RESULT, n=n, progress=progress, comment=findings)


def lay_out(out: Path) -> None:
    """The models as directories in `out`, unless they lie there; those of an earlier version are replaced.

    Raises OutputError, before anything is written, for a directory that holds other things.
    """
    with writing(out), resources.as_file(resources.files("evalkit.demo") / "checkpoints") as shipped:
        if out.exists() and not out.is_dir():
            raise OutputError(f"`{out}` exists and is no directory; choose another")
        missing = [name for name in MODELS if not _is_copy(out / name, shipped / name)]
        if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
            raise OutputError(f"`{out}` exists and holds something else; choose another directory")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
        for name in missing:
            partial = out / f".{name}.partial"
            for path in (partial, out / name):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(shipped / name, partial)
            partial.rename(out / name)


def _is_copy(directory: Path, shipped: Path) -> bool:
    """Whether a model is as the package has it."""
    files = [path.name for path in shipped.iterdir()]
    return filecmp.cmpfiles(shipped, directory, files, shallow=False) == (files, [], [])
