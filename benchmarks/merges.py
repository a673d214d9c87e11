"""Every method that mergekit has, run by both on one file: time, peak memory, and how far the results agree.

    python benchmarks/merges.py --directory /big/disk [--layers 4] [--runs 1] [--only ties slerp] [--dtype float32]

Makes its own inputs below the directory, a base and two models made from it with the shapes of a Llama of 1.2 billion
parameters, and an environment with mergekit 0.1.5. Each file is run by `mergekit-yaml` and by `surgery apply`, in
processes of their own. Prints a table: times, their ratio, peak resident memory, its ratio, the share of entries that
are more than one unit of bf16 apart, the distance of the results, and the length of our change of the base, both
relative to that of mergekit's change. `--dtype` is that of the files: mergekit computes in it, so that float32 tells
differences of the formulas from those of its rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Measured, measure

MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")
SURGERY = (sys.executable, "-m", "surgery")

HALF = {"weight": 0.5}
SPARSE = {"weight": 0.5, "density": 0.5}
TWO: dict[str, dict[str, Any]] = {  # method -> parameters a model; the base is beside them
    "task_arithmetic": HALF,
    "ties": SPARSE,
    "dare_linear": SPARSE,
    "dare_ties": SPARSE,
    "breadcrumbs": {**SPARSE, "gamma": 0.01},
    "breadcrumbs_ties": {**SPARSE, "gamma": 0.01},
    "della": {**SPARSE, "epsilon": 0.1},
    "della_linear": {**SPARSE, "epsilon": 0.1},
    "sce": {},
    "ram": {},
    "ramplus_tl": {},
    "model_stock": {},
}
SHARED: dict[str, dict[str, Any]] = {"sce": {"select_topk": 0.5}, "slerp": {"t": 0.3}, "nearswap": {"t": 0.001}}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")  # they agree in distribution
METHODS = ("linear", "slerp", "nuslerp", "multislerp", "karcher", *TWO, "nearswap", "arcee_fusion", "passthrough")


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--mergekit", type=Path, help="an environment that has it; default: one is made")
    options = parser.parse_args()
    root: Path = options.directory
    os.environ |= {"SURGERY_CACHE": "off", "HF_HUB_OFFLINE": "1"}
    place = root / f"three-{options.layers}"
    models = {name: place / name for name in ("base", "one", "two")}
    _beside("synthetic.py", place, str(options.layers), "one", "two")
    mergekit = options.mergekit or _mergekit(root / "mergekit")
    files = (configuration(method, models, options.dtype) for method in options.only)
    rows = (compare(file, models, root, mergekit, options.runs) for file in files)
    size = f"{_size(models['base']) / 1e9:.2f} GB a model in bf16"
    print(f"{options.layers} layers, {size}, merged in {options.dtype}, runs: {options.runs}")
    columns = "method | mergekit | surgery | times faster | memory: mergekit | surgery | times smaller"
    print(f"| {columns} | > 1 unit | distance | length |")
    print("|---" * 10 + "|")
    for row in rows:
        print(row, flush=True)


@dataclass(frozen=True)
class Row:
    """One method."""

    method: str
    theirs: Measured
    ours: Measured
    apart: float
    distance: float
    length: float

    def __str__(self) -> str:
        faster, smaller = self.theirs.seconds / self.ours.seconds, self.theirs.peak / self.ours.peak
        agreement = "random" if self.method in RANDOM else f"{self.apart:.2%}"
        times = f"{self.theirs.seconds:.1f} s | {self.ours.seconds:.1f} s | {faster:.1f}"
        memory = f"{self.theirs.peak / 1e9:.2f} GB | {self.ours.peak / 1e9:.2f} GB | {smaller:.1f}"
        return f"| {self.method} | {times} | {memory} | {agreement} | {self.distance:.4f} | {self.length:.4f} |"


def compare(file: dict[str, Any], models: dict[str, Path], root: Path, mergekit: Path, runs: int) -> Row:
    """Both on one file, and how far their results are apart."""
    path, ours, theirs = root / "merge.yml", root / "ours", root / "theirs"
    path.write_text(json.dumps(file))  # JSON is YAML
    measured = []
    for out, command in (
        (theirs, [mergekit / "bin" / "mergekit-yaml", path, theirs, "--no-copy-tokenizer", "--quiet"]),
        (ours, [*SURGERY, "apply", path, ours]),
    ):

        def before(out: Path = out) -> None:
            shutil.rmtree(out, ignore_errors=True)
            for model in models.values():
                _warm(model)

        measured.append(measure(command, runs, before))
    agreement = map(float, _beside("agreement.py", theirs, ours, models["base"]).split())
    for out in (ours, theirs):
        shutil.rmtree(out)
    return Row(file["merge_method"], *measured, *agreement)


def configuration(method: str, models: dict[str, Path], dtype: str) -> dict[str, Any]:
    """A file of mergekit's."""
    base, one, two = (str(models[name]) for name in ("base", "one", "two"))
    made: dict[str, Any] = {"merge_method": method, "dtype": dtype, "parameters": SHARED.get(method, {})}
    if method == "passthrough":
        return {**made, "models": [{"model": one, "parameters": {"scale": 0.9}}]}
    if method in ("slerp", "nearswap", "arcee_fusion"):
        return {**made, "base_model": base, "models": [{"model": base}, {"model": one}]}
    each = TWO.get(method, HALF if method != "karcher" else {})
    listed = [{"model": model, "parameters": each} for model in (one, two)]
    return {**made, "models": listed, **({"base_model": base} if method in TWO else {})}


def _beside(script: str, *words: str | Path) -> str:
    """In a process of its own, since a child's peak memory is never reported as less than its parent's was."""
    command = [sys.executable, Path(__file__).with_name(script), *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _warm(model: Path) -> None:
    """Read a model once, so that both programs find it in the page cache."""
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _size(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _mergekit(place: Path) -> Path:
    """An environment that has it."""
    if not (place / "bin" / "mergekit-yaml").exists():
        venv.create(place, with_pip=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", MERGEKIT[0]], check=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", MERGEKIT[1]], check=True)
    return place


if __name__ == "__main__":
    main()
