"""What can be wrong between checkpoints, each kind told once however many tensors it concerns."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.anatomy import Anatomy
from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, PlanError
from surgery.header import TensorInfo
from surgery.recipe import Recipe

# How integers of quantised weights are stored (bitsandbytes, GPTQ, AWQ, compressed-tensors).
PACKED_DTYPES = ("U8", "I8", "I32", "U32")
PACKED_NAMES = (".weight", ".qweight", ".weight_packed")


class Conflicts:
    """Collects the conflicts of one recipe with its inputs."""

    def __init__(self, recipe: Recipe, inputs: Mapping[str, Checkpoint], anatomies: Mapping[str, Anatomy]) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._anatomies = anatomies
        self._found: dict[tuple[int, str], tuple[str, list[str]]] = {}

    def step(self, number: int, message: str) -> None:
        """A conflict of a whole step."""
        self._found.setdefault((number, message), (message, []))

    def output(self, message: str) -> None:
        """A conflict of the recipe's output section."""
        self._found.setdefault((len(self._recipe.steps), message), (message, []))

    def of_step(self, number: int) -> bool:
        """Whether a step has a conflict already."""
        return any(step == number for step, _ in self._found)

    def raise_all(self) -> None:
        """Raises PlanError if anything was found."""
        faults = []
        for (number, _), (message, names) in sorted(self._found.items(), key=lambda item: item[0][0]):
            more = f" ({len(names)} tensors in all)" if len(names) > 1 else ""
            where = self._recipe.where(number) if number < len(self._recipe.steps) else f"{self._recipe.origin} output"
            faults.append(Fault(where, message + more))
        if faults:
            raise PlanError(faults)

    def quantised(self, number: int, role: str, info: TensorInfo) -> bool:
        """Whether a tensor that cannot be computed with is a quantised weight (a conflict), not a mask or an index."""
        packed = info.dtype.name in PACKED_DTYPES and info.name.endswith(PACKED_NAMES) and len(info.shape) > 1
        small_float = info.dtype.name.startswith(("F8", "F6", "F4"))
        if not (packed or small_float or "quantization_config" in self._inputs[role].config):
            return False
        self._add(
            number,
            f"{role}: quantised",
            info.name,
            f"`{info.name}` of `{role}` is quantised ({info.dtype.name}): its values mean nothing without their "
            f"scales; dequantise `{self._inputs[role].source}` first, or leave the tensor out of `select`",
        )
        return True

    def between(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        """Compare a tensor of `start` with its counterpart in `role`; records and tells whether they conflict."""
        checks = (self._tied, self._missing, self._shape, self._dtype)
        return any(check(number, role, info, found) for check in checks)

    def _add(self, number: int, kind: str, name: str, message: str) -> bool:
        self._found.setdefault((number, kind), (message, []))[1].append(name)
        return True

    def _tied(self, number: int, role: str, info: TensorInfo, _: TensorInfo | None) -> bool:
        start = self._recipe.start
        anatomy = self._anatomies[start]
        if info.name not in (anatomy.embedding, anatomy.head):
            return False
        tied, other = (self._inputs[r].tied for r in (start, role))
        if tied == other:
            return False
        words = {True: "tied to the embedding", False: "a matrix of its own"}
        return self._add(
            number,
            f"{role}: tied",
            info.name,
            f"the output head is {words[tied]} in `{start}` and {words[other]} in `{role}`, so `{info.name}` does "
            f"not mean the same in both; leave them out: `exclude: [embedding, lm_head]`",
        )

    def _missing(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        start = self._recipe.start
        here = self._anatomies[start].layer_of(info.name)
        if here is not None:
            ours = self._anatomies[start].stacks[here[0]].layers
            stack = self._anatomies[role].stacks.get(here[0])
            if stack is not None and stack.layers != ours:
                return self._add(
                    number,
                    f"{role}: layers of {here[0]}",
                    info.name,
                    f"`{here[0]}` has {ours} layers in `{start}` and {stack.layers} in `{role}`; expected two "
                    f"checkpoints of one architecture",
                )
        if found is not None:
            return False
        return self._add(
            number,
            f"{role}: missing",
            info.name,
            f"`{info.name}` is in `{start}` and not in `{role}` ({self._inputs[role].source}); expected the same "
            f"tensors in both: exclude it, or take checkpoints of one architecture",
        )

    def _shape(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        assert found is not None
        if found.shape == info.shape:
            return False
        start = self._recipe.start
        anatomy = self._anatomies[start]
        shapes = f"{list(info.shape)} in `{start}` and {list(found.shape)} in `{role}`"
        if info.name in (anatomy.embedding, anatomy.head) and found.shape[1:] == info.shape[1:]:
            return self._add(
                number,
                f"{role}: vocabulary",
                info.name,
                f"the vocabularies differ: `{info.name}` is {shapes}; rows are not matched by position: leave them "
                f"out, `exclude: [embedding, lm_head]`",
            )
        return self._add(
            number,
            f"{role}: shape",
            info.name,
            f"shapes differ: `{info.name}` is {shapes}; exclude it, or take checkpoints of one architecture",
        )

    def _dtype(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        assert found is not None
        if not found.dtype.arithmetic and info.dtype.arithmetic and self.quantised(number, role, found):
            return True
        if found.dtype == info.dtype:
            return False
        if self._recipe.output.dtype != "keep" and found.dtype.arithmetic and info.dtype.arithmetic:
            return False
        return self._add(
            number,
            f"{role}: dtype",
            info.name,
            f"dtypes differ: `{info.name}` is {info.dtype.name} in `{self._recipe.start}` and {found.dtype.name} in "
            f"`{role}`; name the dtype of the output, `--set output.dtype=bfloat16` (or float16, float32)",
        )
