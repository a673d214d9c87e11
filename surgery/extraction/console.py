"""What a person sees of an extraction: a table on stdout, progress on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.console import WorkProgress, make_console, make_table
from surgery.header import shown
from surgery.size import show_size

if TYPE_CHECKING:
    from surgery.extraction.choice import Choice, Target
    from surgery.extraction.report import Extracted

_KEPT = {"factors": "factors", "whole": "whole", "nothing": "left out"}


def print_extracted(extracted: Extracted) -> None:
    """Each tensor that differs with what is kept of its change, and all of them together."""
    console = make_console()
    table = make_table("tensor", "stored", "rank", "change", "kept", "error", right=["rank", "change", "kept", "error"])
    for row in extracted.rows:
        table.add_row(
            shown(row.name),
            _KEPT[row.kept],
            str(row.rank or "-"),
            f"{row.relative:.3g}",
            f"{100 * row.energy:.2f} %",
            f"{row.error:.3g}",
        )
    console.print(table)
    console.print()
    for remark in extracted.remarks:
        console.print(f"note: {remark}")
    console.print(
        f"{extracted.out}: {extracted.parameters:,} parameters, {show_size(extracted.nbytes)}; keeps "
        f"{100 * extracted.energy:.2f} % of the squared change of the matrices (relative error {extracted.error:.3g}), "
        f"{100 * extracted.energy_in_all:.2f} % of that of all tensors; {extracted.equal:,} tensors are equal"
    )
    console.print(f"use it with its base: {extracted.base}+{extracted.out}")


class ExtractProgress(WorkProgress):
    """Progress of `extract-lora`."""

    def __init__(self) -> None:
        super().__init__("extract", "tensors")

    def begin(self, choice: Choice) -> None:
        """The run starts."""
        self._begin(sum(target.flops for target in choice.targets), len(choice.targets))

    def finished(self, target: Target, resumed: bool) -> None:  # noqa: ARG002 - the protocol's
        """A tensor is done."""
        self._advance(target.flops)
