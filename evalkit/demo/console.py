"""What a person sees of the demo. Only the command line uses it."""

from __future__ import annotations

from textwrap import fill

from evalkit.demo.run import RESULT
from evalkit.sweeps.console import WIDTH, print_sweep
from evalkit.sweeps.result import SweepResult
from surgery.console import make_console


def print_demo(result: SweepResult, out: str) -> None:
    """The sweep's table, what came out in words, and what to try next."""
    print_sweep(result, f"{out}/{RESULT}")
    console = make_console()
    console.print()
    console.print(
        fill(
            "These are models of a million parameters, of one seed: what they show need not hold for yours. Next:",
            WIDTH,
        )
    )
    console.print(f"  surgery diff {out}/base {out}/sft {out}/rl --out {out}/diff")
    console.print(f"  surgery apply restore-top-20pct-rotate {out}/base {out}/sft {out}/edited --set head=30%")
    console.print(f"  surgery eval general_points_steps {out}/base {out}/sft {out}/edited --engine transformers")
