"""Whole runs side by side on a synthetic 1.2B pair: `linear` against mergekit, the spectral edit against plain SVDs.

    python benchmarks/apply.py --directory /big/disk [--runs 3] [--layers 16] [--only linear|memory|spectral] [--touch]

Makes its own inputs (5 GB) below the directory, and an environment with mergekit 0.1.5. Prints times (median), peak
resident memory and ratios, and beside them the limit: the rate at which this machine copies files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from measure import Measured, measure

LAYERS = 16
MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")
SPECTRAL = {"op": "restore_directions", "from": "base", "head": "20%"}
SURGERY = (sys.executable, "-m", "surgery.cli", "apply")


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model that the spectral edit is run on")
    parser.add_argument("--touch", action="store_true", help="touch free memory before each run of `linear`")
    parser.add_argument("--only", choices=["linear", "memory", "spectral"])
    options = parser.parse_args()
    root: Path = options.directory
    os.environ["SURGERY_CACHE"] = "off"  # no run finds what another one decomposed
    if options.only in (None, "linear"):
        linear(root, options.runs, options.touch)
    if options.only in (None, "memory"):
        memory(root)
    if options.only in (None, "spectral"):
        spectral(root, options.layers, options.runs)


def linear(root: Path, runs: int, touch: bool) -> None:
    """The mean of two models: surgery, mergekit, and copying one model."""
    base, sft = _pair(root, LAYERS)
    out = root / "out"
    recipe = _recipe(root, "linear", {"op": "linear", "models": ["base", "sft"], "weights": [0.5, 0.5]})

    def before() -> None:
        _clear(out)
        _warm(base, sft)

    print(f"linear, 2 x {_size(base) / 1e9:.2f} GB in, {_size(base) / 1e9:.2f} GB out")
    copied = _show("copy one model (cp)", measure(["cp", "-r", base, out], runs, before, touch=touch))
    ours = _show("surgery", measure([*SURGERY, recipe, base, sft, out], runs, before, touch=touch))
    durable = [*SURGERY, recipe, base, sft, out, "--durable"]
    _show("surgery --durable", measure(durable, runs, before, touch=touch))
    theirs = _show("mergekit 0.1.5", measure(_mergekit(root, base, sft, out), runs, before, touch=touch))
    _clear(out)
    rate = 2 * _size(base) / copied.seconds
    print(f"  mergekit / surgery: {theirs.seconds / ours.seconds:.1f} x time, {theirs.peak / ours.peak:.1f} x memory")
    print(f"  limit: 3 x {_size(base) / 1e9:.2f} GB moved at the copy rate of {rate / 1e9:.2f} GB/s (read and written)")
    print(f"  is {3 * _size(base) / rate:.1f} s; surgery takes {ours.seconds * rate / (3 * _size(base)):.1f} x that\n")


def memory(root: Path) -> None:
    """Peak memory of `linear` with the layers of the model doubled, and under `--memory`."""
    recipe = _recipe(root, "linear", {"op": "linear", "models": ["base", "sft"], "weights": [0.5, 0.5]})
    print("peak resident memory of linear")
    out = root / "out"
    for layers, limit in ((LAYERS, None), (2 * LAYERS, None), (LAYERS, "420MB")):
        base, sft = _pair(root, layers)
        bound = ["--memory", limit] if limit else []
        label = f"{layers} layers{f', --memory {limit}' if limit else ''}"
        _show(label, measure([*SURGERY, recipe, base, sft, out, *bound], 1, lambda: _clear(out)))
    _clear(out)
    print()


def spectral(root: Path, layers: int, runs: int) -> None:
    """`restore_directions head=20%` over attention and MLP: surgery, and two full SVDs of each matrix with torch."""
    base, sft = _pair(root, layers)
    out = root / "out"
    print(f"restore_directions head=20%, {layers} layers of a Llama-3.2-1B's shapes")
    found: dict[str, Measured] = {}
    for kind in ("none", "rotate"):
        recipe = _recipe(root, kind, {**SPECTRAL, "orthogonalize": kind})
        command = [*SURGERY, recipe, base, sft, out]
        found[kind] = _show(f"surgery, {kind}", measure(command, runs, lambda: _clear(out)))
    plain = [sys.executable, Path(__file__).with_name("plain_svd.py"), base, sft, out]
    svd = _show("torch.linalg.svd of both", measure(plain, 1, lambda: _clear(out)))
    _clear(out)
    print(f"  plain SVDs / surgery: {svd.seconds / found['none'].seconds:.1f} x")
    print(f"  rotate / none: {found['rotate'].seconds / found['none'].seconds:.2f} x\n")


def _pair(root: Path, layers: int) -> tuple[Path, Path]:
    """In a process of its own, since a child's peak memory is never reported as less than its parent's was."""
    directory = root / f"pair-{layers}"
    script = Path(__file__).with_name("synthetic.py")
    subprocess.run([sys.executable, script, directory, str(layers)], check=True)
    return directory / "base", directory / "sft"


def _warm(*checkpoints: Path) -> None:
    """Read the inputs once, so that every program finds them in the page cache."""
    for checkpoint in checkpoints:
        for path in checkpoint.glob("*.safetensors"):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _mergekit(root: Path, base: Path, sft: Path, out: Path) -> list[str | Path]:
    environment = root / "mergekit-0.1.5"
    if not (environment / "bin" / "mergekit-yaml").exists():
        venv.create(environment, with_pip=True)
        for package in MERGEKIT:
            subprocess.run([environment / "bin" / "pip", "install", "--quiet", package], check=True)
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (base, sft)]
    config = root / "mergekit.yaml"
    config.write_text(json.dumps({"merge_method": "linear", "dtype": "bfloat16", "models": models}))
    return [environment / "bin" / "mergekit-yaml", config, out, "--no-copy-tokenizer"]


def _recipe(root: Path, name: str, step: dict[str, object]) -> Path:
    path = root / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "models": ["base", "sft"], "steps": [step]}))
    return path


def _size(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def _clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)


def _show(label: str, measured: Measured) -> Measured:
    print(f"  {label:26}{measured}", flush=True)
    return measured


if __name__ == "__main__":
    main()
