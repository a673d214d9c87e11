"""The dtypes of the safetensors format, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype as safetensors spells it (`BF16`) and as torch does (`bfloat16`).

    `arithmetic` tells whether values may be computed with. The 8-bit and smaller floats may not: in
    checkpoints they come with scales in other tensors, without which their values mean nothing.
    """

    name: str
    bits: int
    torch_name: str | None
    arithmetic: bool = False

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype; only for dtypes that `torch_name` names."""
        import torch

        assert self.torch_name is not None, f"{self.name} has no torch dtype"
        dtype = getattr(torch, self.torch_name)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements; the sub-byte dtypes are packed, and round up."""
        return (elements * self.bits + 7) // 8


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("F64", 64, "float64", arithmetic=True),
        DType("F32", 32, "float32", arithmetic=True),
        DType("F16", 16, "float16", arithmetic=True),
        DType("BF16", 16, "bfloat16", arithmetic=True),
        DType("C64", 64, "complex64"),
        DType("I64", 64, "int64"),
        DType("U64", 64, "uint64"),
        DType("I32", 32, "int32"),
        DType("U32", 32, "uint32"),
        DType("I16", 16, "int16"),
        DType("U16", 16, "uint16"),
        DType("I8", 8, "int8"),
        DType("U8", 8, "uint8"),
        DType("BOOL", 8, "bool"),
        DType("F8_E4M3", 8, "float8_e4m3fn"),
        DType("F8_E5M2", 8, "float8_e5m2"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, "float8_e8m0fnu"),
        DType("F6_E2M3", 6, None),
        DType("F6_E3M2", 6, None),
        DType("F4", 4, None),
    )
}

OUTPUT_DTYPES: dict[str, DType] = {
    "float32": DTYPES["F32"],
    "float16": DTYPES["F16"],
    "bfloat16": DTYPES["BF16"],
}
