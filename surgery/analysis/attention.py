"""The attention modules whose value and output projections are compared, as `surgery.heads` finds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.header import TensorInfo
from surgery.heads import find_heads


@dataclass(frozen=True, slots=True)
class Attention:
    """Value (kv heads x head_dim rows) and output projection (heads x head_dim columns) of one layer, in all models."""

    name: str
    stack: str
    layer: int
    head_dim: int
    value: Mapping[str, TensorInfo]
    bias: Mapping[str, TensorInfo]  # of those models that have one
    output: Mapping[str, TensorInfo]

    def tensors(self) -> Iterator[TensorInfo]:
        """All that is read."""
        for infos in (self.value, self.bias, self.output):
            yield from infos.values()

    @property
    def module(self) -> str:
        """The name within the layer: `self_attn`."""
        return self.name.removeprefix(f"{self.stack}.{self.layer}.")

    @property
    def chance(self) -> float:
        """The share of a small change at random that a rotation explains: (head_dim - 1) / 2 degrees of freedom for
        each of the head_dim dimensions, of the weights that meet in one of them.
        """
        value, output = (next(iter(infos.values())) for infos in (self.value, self.output))
        group = output.shape[1] // value.shape[0]
        return (self.head_dim - 1) / 2 / (value.shape[1] + group * output.shape[0])

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds: all models' projections, and one head's in float64."""
        elements = sum(info.elements for info in self.tensors())
        rows = sum(next(iter(infos.values())).shape[i] for infos, i in ((self.value, 1), (self.output, 0)))
        widest = max(info.stored.dtype.bits // 8 for info in self.tensors())
        adapters = sum(info.adapted.memory(info.shape) for info in self.tensors() if info.adapted)
        group = next(iter(self.output.values())).shape[1] * self.head_dim // self._value_rows
        return elements * max(4, widest) * 2 + 8 * 8 * (rows * group + self.head_dim**2) + adapters

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order."""
        return sum(8 * info.elements * self.head_dim for info in self.tensors())

    @property
    def _value_rows(self) -> int:
        return next(iter(self.value.values())).shape[0]


def find_attentions(
    models: Mapping[str, Checkpoint], names: Collection[str]
) -> tuple[tuple[Attention, ...], tuple[str, ...]]:
    """The attention modules both of whose projections are among `names`, and why others are left out."""
    base = next(iter(models.values()))
    found: list[Attention] = []
    skipped: dict[str, None] = {}
    for module, heads in find_heads(base, names).items():
        if isinstance(heads, str):
            skipped[f"the gauge of value and output projections is not measured: {heads}"] = None
            continue
        place = base.anatomy.layer_of(heads.value)
        assert place is not None
        infos = [
            {model: checkpoint.tensors[name] for model, checkpoint in models.items() if name in checkpoint.tensors}
            for name in (heads.value, f"{heads.value.removesuffix('.weight')}.bias", heads.output)
        ]
        found.append(Attention(module, *place, heads.head_dim, *infos))
    if not found and not skipped and any(base.anatomy.group_of(name) == "attention" for name in names):
        skipped["the gauge is not measured: there are no separate value and output projections"] = None
    return tuple(found), tuple(skipped)
