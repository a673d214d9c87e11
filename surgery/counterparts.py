"""What can be wrong between a tensor that is edited and those of other checkpoints that are read for it."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.checkpoint import Checkpoint
from surgery.conflicts import Conflicts
from surgery.header import TensorInfo
from surgery.plan import Source
from surgery.recipe import Recipe
from surgery.token_positions import REMEDY, TokenPositions
from surgery.token_rows import TokenRows

# How integers of quantised weights are stored (bitsandbytes, GPTQ, AWQ, compressed-tensors).
PACKED_DTYPES = ("U8", "I8", "I32", "U32")
PACKED_NAMES = (".weight", ".qweight", ".weight_packed")


class Counterparts:
    """Compares the tensors that steps edit with those that they read; what does not fit goes to `conflicts`."""

    def __init__(
        self,
        inputs: Mapping[str, Checkpoint],
        rows: TokenRows,
        positions: TokenPositions,
        recipe: Recipe,
        conflicts: Conflicts,
    ) -> None:
        self._inputs = inputs
        self._rows = rows
        self._positions = positions
        self._stacking = rows.stacking
        self._recipe = recipe
        self._conflicts = conflicts

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
        """Compare a tensor that is edited with its counterpart in `role`; records and tells whether they conflict."""
        checks = (self._tied, self._missing, self._shape, self._tokens, self._dtype)
        found = self._rows.as_output(info.name, found)
        return any(check(number, role, info, found) for check in checks)

    def _add(self, number: int, kind: str, name: str, message: str) -> bool:
        self._conflicts.add(("steps", number), kind, name, message)
        return True

    def _owner(self, info: TensorInfo) -> Source:
        """The tensor that is edited, as its role has it."""
        return self._stacking.origins[info.name]

    def _tied(self, number: int, role: str, info: TensorInfo, _: TensorInfo | None) -> bool:
        owner = self._owner(info)
        anatomy = self._stacking.start.anatomy
        if info.name not in (anatomy.embedding, anatomy.head):
            return False
        tied, other = (self._inputs[r].tied for r in (owner.role, role))
        if tied == other:
            return False
        words = {True: "tied to the embedding", False: "a matrix of its own"}
        return self._add(
            number,
            f"{role}: tied",
            info.name,
            f"the output head is {words[tied]} in `{owner.role}` and {words[other]} in `{role}`, so "
            f"`{owner.info.name}` does not mean the same in both; leave them out: `exclude: [embedding, lm_head]`",
        )

    def _missing(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        owner = self._owner(info)
        block = self._stacking.block_of(info.name)
        if block is not None and role not in block.layers:
            assert self._recipe.slices is not None
            asked = self._recipe.slices[block.number][block.first]
            return self._add(
                number,
                f"{role}: layers of slices[{block.number}]",
                info.name,
                f"`slices[{block.number}]` names no layers of `{role}`, which does not have all with the numbers of "
                f"`{block.first}: {asked}`; name there those that are meant, `{role}: ...`",
            )
        here = self._stacking.start.anatomy.layer_of(info.name)
        if here is not None and block is None:
            ours = self._stacking.start.anatomy.stacks[here[0]].layers
            stack = self._inputs[role].anatomy.stacks.get(here[0])
            if stack is not None and stack.layers != ours:
                return self._add(
                    number,
                    f"{role}: layers of {here[0]}",
                    info.name,
                    f"`{here[0]}` has {ours} layers in `{owner.role}` and {stack.layers} in `{role}`; expected two "
                    f"checkpoints of one architecture",
                )
        if found is not None:
            return False
        return self._add(
            number,
            f"{role}: missing",
            info.name,
            f"`{owner.info.name}` is in `{owner.role}` and not in `{role}` ({self._inputs[role].source}); expected the "
            f"same tensors in both: exclude it, or take checkpoints of one architecture",
        )

    def _shape(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        assert found is not None
        if found.shape == info.shape:
            return False
        owner = self._owner(info)
        anatomy = self._stacking.start.anatomy
        shapes = f"{list(info.shape)} in `{owner.role}` and {list(found.shape)} in `{role}`"
        if info.name in (anatomy.embedding, anatomy.head) and found.shape[1:] == info.shape[1:]:
            return self._add(
                number,
                f"{role}: vocabulary",
                info.name,
                f"the vocabularies differ: `{owner.info.name}` is {shapes}; rows are not matched by position: {REMEDY}",
            )
        return self._add(
            number,
            f"{role}: shape",
            info.name,
            f"shapes differ: `{owner.info.name}` is {shapes}; exclude it, or take checkpoints of one architecture",
        )

    def _tokens(self, number: int, role: str, info: TensorInfo, _: TensorInfo | None) -> bool:
        """Rows that are matched by position must belong to the same tokens."""
        message = self._positions.mismatch(self._owner(info).role, role) if info.name in self._rows.names else None
        return message is not None and self._add(number, f"{role}: vocabulary", info.name, message)

    def _dtype(self, number: int, role: str, info: TensorInfo, found: TensorInfo | None) -> bool:
        assert found is not None
        if not found.dtype.arithmetic and info.dtype.arithmetic and self.quantised(number, role, found):
            return True
        if found.dtype == info.dtype:
            return False
        if self._recipe.output.dtype != "keep" and found.dtype.arithmetic and info.dtype.arithmetic:
            return False
        owner = self._owner(info)
        return self._add(
            number,
            f"{role}: dtype",
            info.name,
            f"dtypes differ: `{owner.info.name}` is {info.dtype.name} in `{owner.role}` and {found.dtype.name} in "
            f"`{role}`; name the dtype of the output, `--set output.dtype=bfloat16` (or float16, float32)",
        )
