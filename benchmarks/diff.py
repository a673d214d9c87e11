"""`surgery diff` against full SVDs of every matrix, side by side on a synthetic 1.2B pair.

    python benchmarks/diff.py --directory /big/disk [--layers 16] [--only quick|full|cache|memory]

Makes its own inputs (5 GB) below the directory. Prints times, peak resident memory and ratios. `plain` is
benchmarks/plain_diff.py: float32 `torch.linalg.svd` of every matrix of both models, with all threads, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from measure import Measured, measure

SURGERY = (sys.executable, "-m", "surgery.cli")


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--only", choices=["quick", "full", "cache", "memory"])
    options = parser.parse_args()
    os.environ["SURGERY_CACHE"] = "off"
    parts: dict[str, Callable[[Path, int], None]] = {"quick": quick, "full": full, "cache": cache, "memory": memory}
    for name, part in parts.items():
        if options.only in (None, name):
            part(options.directory, options.layers)


def quick(root: Path, layers: int) -> None:
    """The leading directions of every matrix, embedding included, and full SVDs of all."""
    base, sft = _pair(root, layers)
    print(f"leading directions of every matrix, {layers} layers, embedding included")
    ours = _diff("surgery diff --quick", root, base, sft, "--quick")
    wide = _diff("surgery diff --quick --rank 20%", root, base, sft, "--quick", "--rank", "20%")
    plain = measure([sys.executable, Path(__file__).with_name("plain_diff.py"), base, sft], 1, lambda: None)
    print(f"  {'plain: SVDs of every matrix':30}{plain}")
    ratios = [plain.seconds / each.seconds for each in (ours, wide)]
    print(f"  plain / surgery: {ratios[0]:.1f} x; with 20 %: {ratios[1]:.1f} x\n", flush=True)


def full(root: Path, layers: int) -> None:
    """All directions, figures and report included."""
    base, sft = _pair(root, layers)
    print(f"all directions, {layers} layers, attention and MLP")
    _diff("surgery diff", root, base, sft, *_inside())
    print()


def cache(root: Path, layers: int) -> None:
    """A comparison and an edit that share their decompositions: what keeping costs, and what it saves."""
    base, sft = _pair(root, layers)
    print(f"decompositions of the leading 20 % shared, {layers} layers, attention and MLP")
    directory = root / "cache"
    shutil.rmtree(directory, ignore_errors=True)
    same = ["--quick", "--rank", "20%", *_inside()]
    without = _diff("diff --quick, no cache", root, base, sft, *same)
    os.environ["SURGERY_CACHE"] = str(directory)
    keeping = _diff("diff --quick, keeping", root, base, sft, *same)
    again = _diff("diff --quick again", root, base, sft, *same)
    apply = [*SURGERY, "apply", "restore-top-20pct", base, sft, root / "out"]
    shared = _show("apply after it", measure(apply, 1, lambda: _clear(root / "out")))
    os.environ["SURGERY_CACHE"] = "off"
    alone = _show("apply alone", measure(apply, 1, lambda: _clear(root / "out")))
    kept = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"  kept: {kept / 1e9:.2f} GB; keeping / without: {keeping.seconds / without.seconds:.2f} x")
    print(f"  without / again: {without.seconds / again.seconds:.1f} x; apply alone / after: ", end="")
    print(f"{alone.seconds / shared.seconds:.1f} x\n", flush=True)
    shutil.rmtree(directory)
    _clear(root / "out")


def memory(root: Path, layers: int) -> None:
    """Peak memory with twice the layers, and under `--memory`."""
    print("peak resident memory of diff --quick, attention and MLP")
    for count, limit in ((layers, None), (2 * layers, None), (layers, "1GB")):
        base, sft = _pair(root, count)
        bound = ["--memory", limit] if limit else []
        _diff(f"{count} layers{f', --memory {limit}' if limit else ''}", root, base, sft, "--quick", *_inside(), *bound)
    print()


def _inside() -> list[str]:
    return ["--tensors", "attention", "--tensors", "mlp"]


def _diff(label: str, root: Path, base: Path, sft: Path, *options: str) -> Measured:
    out = root / "report"
    command = [*SURGERY, "diff", base, sft, "--out", out, *options]
    measured = _show(label, measure(command, 1, lambda: _clear(out)))
    _clear(out)
    return measured


def _pair(root: Path, layers: int) -> tuple[Path, Path]:
    """In a process of its own, since a child's peak memory is never reported as less than its parent's was."""
    directory = root / f"pair-{layers}"
    subprocess.run([sys.executable, Path(__file__).with_name("synthetic.py"), directory, str(layers)], check=True)
    return directory / "base", directory / "sft"


def _clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)


def _show(label: str, measured: Measured) -> Measured:
    print(f"  {label:30}{measured}", flush=True)
    return measured


if __name__ == "__main__":
    main()
