"""Many variants of a model in one pass, against one `apply` and against one after the other.

    python benchmarks/sweep.py --directory /big/disk [--layers 4] [--runs 3] [--edits none rotate]

`restore_directions` at five values of `head`, on a pair with the shapes of a Llama of 1.2 billion parameters, which it
makes below the directory: five outputs by one `surgery.apply_all`, the output with the largest head by `surgery.apply`,
and the five by `apply` in a row. Each in a process of its own, in turns; prints times (median of the runs), peak
resident memory, and the ratios, medians of those within a round; those of processor time for a busy machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from measure import Measured, measure

HEADS = ("5%", "10%", "20%", "30%", "40%")
EDITS = ("none", "rotate", "polar")


def main() -> None:
    """Run what was asked for and print it; with `--way`, be one of the programs that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--edits", nargs="+", default=["none", "rotate"], choices=EDITS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    pair = options.directory / f"pair-{options.layers}"
    if options.way is not None:
        WAYS[options.way](options.edits[0], pair, options.directory / "out")
        return
    os.environ["SURGERY_CACHE"] = "off"  # no run finds what another one decomposed
    subprocess.run([sys.executable, Path(__file__).with_name("synthetic.py"), pair, str(options.layers)], check=True)
    for edit in options.edits:
        compare(edit, options.directory, options.layers, options.runs)


def together(edit: str, pair: Path, out: Path) -> None:
    """All heads in one pass."""
    import surgery

    variants = [surgery.Variant(recipe(edit), out / head, {"head": head}) for head in HEADS]
    surgery.apply_all(variants, {"base": pair / "base", "sft": pair / "sft"})


def one(edit: str, pair: Path, out: Path) -> None:
    """The largest head alone."""
    _apply(edit, pair, out, HEADS[-1:])


def in_a_row(edit: str, pair: Path, out: Path) -> None:
    """All heads, one after the other."""
    _apply(edit, pair, out, HEADS)


WAYS = {"together": together, "one": one, "in a row": in_a_row}


def _apply(edit: str, pair: Path, out: Path, heads: tuple[str, ...]) -> None:
    import surgery

    for head in heads:
        surgery.apply(recipe(edit), [pair / "base", pair / "sft"], out / head, settings={"head": head})


def recipe(edit: str) -> dict[str, object]:
    """`restore_directions` over attention and MLP."""
    step = {"op": "restore_directions", "from": "base", "head": "$head", "orthogonalize": edit}
    return {"name": edit, "models": ["base", "sft"], "parameters": {"head": HEADS[-1]}, "steps": [step]}


def compare(edit: str, root: Path, layers: int, runs: int) -> None:
    """Time and memory of the three ways, measured in turns."""
    print(f"restore_directions, orthogonalize: {edit}, {layers} layers, heads {', '.join(HEADS)}")
    out = root / "out"
    rounds: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, found in rounds.items():
            command = [sys.executable, __file__, "--directory", root, "--layers", str(layers), "--edits", edit]
            found.append(measure([*command, "--way", way], 1, lambda: shutil.rmtree(out, ignore_errors=True)))
    shutil.rmtree(out, ignore_errors=True)
    for way, found in rounds.items():
        seconds, processor = [each.seconds for each in found], [each.processor for each in found]
        spread, peak = (min(seconds), max(seconds)), max(each.peak for each in found)
        summed = Measured(statistics.median(seconds), spread, peak, statistics.median(processor))
        print(f"  {way:12}{summed}, {summed.processor:.1f} s of processor time")
    for way in ("one", "in a row"):
        pairs = list(zip(rounds["together"], rounds[way], strict=True))
        ratios = sorted(ours.seconds / theirs.seconds for ours, theirs in pairs)
        busy = statistics.median(ours.processor / theirs.processor for ours, theirs in pairs)
        spread = f"({ratios[0]:.2f} - {ratios[-1]:.2f})"
        print(f"  together / {way}: {statistics.median(ratios):.2f} x time {spread}, {busy:.2f} x processor time")
    print(flush=True)


if __name__ == "__main__":
    main()
