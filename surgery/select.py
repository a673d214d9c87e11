"""Which tensors a step acts on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from surgery.layers import LayerRangeField


class Select(BaseModel):
    """`select:` of a step: layers of one stack, groups or globs of tensors, less what is excluded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: LayerRangeField | None = None
    tensors: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    stack: str | None = None
