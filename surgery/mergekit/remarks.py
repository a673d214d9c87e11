"""What has no effect, or another one than in mergekit, of the keys of a file."""

from __future__ import annotations

from surgery.mergekit.chat_formats import DIFFERENT
from surgery.mergekit.merge_file import MergeFile, Module
from surgery.source import Path

EXACT = ("linear", "slerp", "passthrough")  # mergekit computes these in float32 whatever `dtype` says, or not at all


def remarks_of(file: MergeFile, random: bool) -> dict[Path, str]:
    """Remarks by the paths of the keys; `random` says whether the method chooses at random."""
    found: dict[Path, str] = {}
    rounded = file.dtype in ("bfloat16", "float16") and file.merge_method not in EXACT
    if rounded or file.dtype == "float64":
        found["dtype",] = f"mergekit also computes in {file.dtype}; here that is done in float32, and rounded once"
    if file.chat_template in DIFFERENT:
        found["chat_template",] = f"here as the format is described; {DIFFERENT[file.chat_template]}"
    if random and file.random_seed is None:
        found["merge_method",] = (
            "mergekit's random masks differ from run to run; here they follow from `seed`, a field of the operation"
        )
    if file.random_seed is not None:
        found["random_seed",] = (
            "mergekit ignores it in a file, its option is `--random-seed`; here it is the `seed` of the operation, and "
            "chooses other entries than there"
            if random
            else f"no effect: `{file.merge_method}` chooses nothing at random"
        )
    parts: dict[Path, MergeFile | Module] = {(): file}
    parts.update({("modules", name): module for name, module in (file.modules or {}).items()})
    for place, part in parts.items():
        for i, model in enumerate(part.models or ()):
            if model.layer_range is not None:
                found[*place, "models", i, "layer_range"] = "no effect, in mergekit either: it belongs into `slices`"
        for i, each in enumerate(part.slices or ()):
            if each.residual_weight is not None:
                found[*place, "slices", i, "residual_weight"] = "no effect, in mergekit either"
    return found
