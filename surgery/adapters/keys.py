"""PEFT's names of an adapter's tensors, and the tensors of the base that they mean.

    base_model.model.MODULE.lora_A.weight              also lora_A.ADAPTER.weight; lora_B, and lora_B.bias
    base_model.model.MODULE.lora_embedding_A           also lora_embedding_A.ADAPTER; lora_embedding_B
    base_model.model.MODULE.PARAMETER                  a whole tensor, of `modules_to_save`

MODULE is a name in the model as transformers loads it. A checkpoint may have another prefix (`h.0` for
`transformer.h.0`): one that makes all names fit is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from surgery.groups import is_head

if TYPE_CHECKING:
    from surgery.header import TensorInfo

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>(?:embedding_)?[AB])(?:\.(?P<rest>.+))?")
# What wraps a module that is saved whole, or the layer under an adapter.
_WRAPPED = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")
_STRANGE = re.compile(r"lora_|hada_|lokr_|ia3_|oft_|vera_|magnitude|token_adapter|original_module|trainable_tokens")


@dataclass
class Factors:
    """The tensors of one module's adapter."""

    A: TensorInfo | None = None
    B: TensorInfo | None = None
    bias: TensorInfo | None = None
    embedding: bool = False


@dataclass
class Contents:
    """What an adapter holds: factors by module, whole tensors by name; `strange` are names that mean nothing here."""

    factors: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, TensorInfo] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The tensors of the base that are meant, by the names that the adapter gives them."""
        return [*(f"{module}.weight" for module in self.factors), *self.whole]

    def split_heads(self) -> tuple[Contents, list[str]]:
        """Everything but output heads, and the names of these."""
        heads = [name for name in self.names if is_head(name)]
        factors = {module: each for module, each in self.factors.items() if f"{module}.weight" not in heads}
        whole = {name: info for name, info in self.whole.items() if name not in heads}
        return Contents(factors, whole, self.strange), heads


def sort_out(tensors: Mapping[str, TensorInfo]) -> Contents:
    """What each tensor of an adapter's file is."""
    found = Contents()
    for name, info in tensors.items():
        inner = name.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(inner)
        if inner == name or (match is None and _STRANGE.search(inner)):
            found.strange.append(name)
        elif match is None:
            found.whole[_WRAPPED.sub("", inner)] = info
        elif not _add(found, match, info):
            found.strange.append(name)
    return found


def _add(found: Contents, match: re.Match[str], info: TensorInfo) -> bool:
    """Put a factor in its place; False where its name is none of those known, or the place is taken."""
    part, rest = match["part"], match["rest"] or ""
    adapter, _, last = rest.rpartition(".")
    embedding = part.startswith("embedding_")
    if embedding:
        last = "weight"
    elif "." in adapter or last not in ("weight", "bias"):
        return False
    place = {"A.weight": "A", "B.weight": "B", "B.bias": "bias"}.get(f"{part[-1]}.{last}")
    factors = found.factors.setdefault(match["module"], Factors(embedding=embedding))
    if place is None or getattr(factors, place) is not None or factors.embedding != embedding:
        return False
    setattr(factors, place, info)
    return True


def find_prefixes(names: Iterable[str], base: Iterable[str]) -> tuple[str, str]:
    """What to take from the front of an adapter's names, and what to put there, so that the base has all of them.

    Two empty ones where nothing has to be done, nothing helps, or two would. Neither reaches into a layer.
    """
    wanted, known = list(names), dict.fromkeys(base)
    if not wanted or all(name in known for name in wanted):
        return "", ""
    components = wanted[0].split(".")
    for i in range(len(components) - 1):
        if i and components[i - 1].isdecimal():
            break
        old = "".join(f"{each}." for each in components[:i])
        rest = wanted[0].removeprefix(old)
        fronts = [name.removesuffix(rest) for name in known if name == rest or name.endswith(f".{rest}")]
        fitting = [
            new
            for new in fronts
            if not any(part.isdecimal() for part in new.split("."))
            and all(name.startswith(old) and new + name.removeprefix(old) in known for name in wanted)
        ]
        if fitting:
            return (old, fitting[0]) if len(fitting) == 1 else ("", "")
    return "", ""
