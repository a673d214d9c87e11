"""`adapter_config.json` of PEFT: what scale and rank each module's adapter has, and what is not supported.

Source: peft.LoraConfig, and `LoraLayer.update_layer` for the scale: alpha / r, or alpha / sqrt(r) with `use_rslora`
(Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar

from surgery.adapters.pattern import Pattern
from surgery.adapters.refusal import AGAIN, MERGE, Refusal
from surgery.header import shown
from surgery.index import read_json

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "adapter_config.json"
Value = TypeVar("Value", int, float)
_PLAIN = re.compile(r"[\w.-]+")  # names; that a dot matches any character makes no difference there
MOST_PATTERNS = 200  # of a field, beside plain names: each may make an automaton of 10 MB, the limit of the engine

# Fields that make an adapter something else than W + scale B A when they are set.
_OTHERWISE = {
    "use_dora": "DoRA, which rescales columns by magnitude vectors",
    "use_qalora": "QALoRA, which pools inputs",
    "use_bdlora": "a block-diagonal adapter",
    "target_parameters": "an adapter of bare parameters (stacks of experts)",
    "trainable_token_indices": "an adapter of single tokens",
    "layer_replication": "an adapter over repeated layers",
    "alora_invocation_tokens": "an activated LoRA, which acts after certain tokens only",
    "arrow_config": "Arrow, which routes among adapters",
}
# Initialisations that change the base itself: what is stored is not relative to the published base.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Patterns(Generic[Value]):
    """Values by regular expressions; one means every module that it matches or whose name ends so after a dot.

    The first in the order of the file counts (PEFT's `get_pattern_key`). Plain names are looked up, as an adapter may
    have one for each of its modules. Raises ValueError for what `Pattern` does not take.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._names: dict[str, tuple[int, Value]] = {}
        self._expressions: list[tuple[int, Pattern, Value]] = []
        for number, (pattern, value) in enumerate(values.items()):
            if _PLAIN.fullmatch(pattern):
                self._names[pattern] = number, value
            else:
                self._expressions.append((number, Pattern(pattern), value))

    def of(self, module: str, otherwise: Value) -> Value:
        """The value for a module."""
        parts = module.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        found = [self._names[end] for end in ends if end in self._names]
        found += [(number, value) for number, each, value in self._expressions if each.matches(module)]
        return min(found, key=itemgetter(0))[1] if found else otherwise


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says. `base` is the model that it names, if any.

    With `tied` an embedding and a head that are one matrix in the base stay one (`ensure_weight_tying`).
    """

    base: str | None
    rank: int
    alpha: float
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    rslora: bool
    fan_in_fan_out: bool
    tied: bool
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter."""
        return self.rank_pattern.of(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's product B A is multiplied by."""
        rank, alpha = self.rank_of(module), self.alpha_pattern.of(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(directory: Path) -> tuple[AdapterConfig | None, list[Refusal]]:
    """The configuration in a directory, and all that is wrong with it; None where that leaves nothing to go on with.

    Raises CheckpointError where the file cannot be read.
    """
    table = read_json(directory / CONFIG, "save the adapter again, or fetch it again")
    faults = list(_unsupported(table))
    rank, alpha = table.get("r", 8), table.get("lora_alpha", 8)
    ranks, alphas = table.get("rank_pattern") or {}, table.get("alpha_pattern") or {}
    if not _is_rank(rank):
        faults.append(Refusal(f"`r` is `{shown(rank)}`; expected a number from 1", AGAIN))
    if not _is_scale(alpha):
        faults.append(Refusal(f"`lora_alpha` is `{shown(alpha)}`; expected a finite number", AGAIN))
    faults += [Refusal(text, AGAIN) for text in _pattern_faults("rank_pattern", ranks, _is_rank)]
    faults += [Refusal(text, AGAIN) for text in _pattern_faults("alpha_pattern", alphas, _is_scale)]
    saved = table.get("modules_to_save") or ()
    if not isinstance(saved, list | tuple) or not all(isinstance(name, str) for name in saved):
        faults.append(Refusal(f"`modules_to_save` is `{shown(saved)}`; expected a list of names", AGAIN))
    if faults:
        return None, faults
    base = table.get("base_model_name_or_path")
    config = AdapterConfig(
        base=base if isinstance(base, str) and base else None,
        rank=rank,
        alpha=float(alpha),
        rank_pattern=Patterns(ranks),
        alpha_pattern=Patterns(alphas),
        rslora=bool(table.get("use_rslora")),
        fan_in_fan_out=bool(table.get("fan_in_fan_out")),
        tied=bool(table.get("ensure_weight_tying")),
        saved=tuple(saved),
    )
    return config, []


def _unsupported(table: Mapping[str, object]) -> Iterator[Refusal]:
    kind = table.get("peft_type")
    if kind != "LORA":
        yield Refusal(f"it is of type `{shown(kind)}`; expected `LORA`", MERGE)
        return
    for field, what in _OTHERWISE.items():
        if table.get(field):
            yield Refusal(f"`{field}` is set: it is {what}", MERGE)
    for field, value in table.items():
        if value and field.startswith("use_") and field not in (*_OTHERWISE, "use_rslora"):
            yield Refusal(f"`{shown(field)}` is set, which is not known here", MERGE)
    bias = table.get("bias", "none")
    if bias != "none":
        told = f"`bias` is `{shown(bias)}`: it was trained together with biases of its base; expected `none`"
        yield Refusal(told, MERGE)
    start = table.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        yield Refusal(
            f"`init_lora_weights` is `{shown(start)}`, which changes the base before training: save it relative to the "
            "published base, with `path_initial_model_for_weight_conversion` of peft"
        )


def _pattern_faults(field: str, patterns: object, sound: Callable[[object], bool]) -> Iterator[str]:
    if not isinstance(patterns, dict):
        yield f"`{field}` is `{shown(patterns)}`; expected an object"
        return
    expressions = 0
    for pattern, value in patterns.items():
        if not sound(value):
            yield f"`{field}` gives `{shown(pattern)}` the value `{shown(value)}`; expected a positive number"
        elif not _PLAIN.fullmatch(pattern):
            try:
                expressions += 1
                Pattern(pattern)
            except ValueError as error:
                yield f"`{field}` has `{shown(pattern)}`, which {error}"
        if expressions > MOST_PATTERNS:
            yield f"`{field}` has more regular expressions than are taken; write names instead"
            return


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
