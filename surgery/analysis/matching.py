"""Which matrices of two or three checkpoints are compared, and what that costs; `matcher` finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from surgery.analysis.attention import Attention
from surgery.checkpoint import Checkpoint
from surgery.errors import Fault, PlanError
from surgery.header import TensorInfo
from surgery.plan import INTERPRETER_BYTES
from surgery.spectral import cost


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of all models: a tensor, or one expert of a stack of them.

    `infos` are its tensors by model; `ranks` are how many leading directions are compared, for each rank that was
    asked for; `known` is how many triplets that takes: all n = min(rows, cols), or the largest rank.
    """

    name: str
    infos: Mapping[str, TensorInfo]
    expert: int
    slice: int
    stack: str
    layer: int
    module: str
    group: str
    ranks: tuple[int, ...]
    known: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = next(iter(self.infos.values())).shape[-2:]
        return rows, cols

    def tensors(self) -> Iterator[TensorInfo]:
        """All that is read, and perhaps more: for an expert the whole stack."""
        yield from self.infos.values()

    @property
    def double(self) -> bool:
        """Whether a model stores it in float64, so that arithmetic is in float64."""
        return any(info.dtype.name == "F64" for info in self.infos.values())

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that a worker holds while it measures this matrix."""
        (rows, cols), models = self.shape, len(self.infos)
        elements, k = rows * cols, self.known
        stored = max(info.stored.dtype.bits // 8 for info in self.infos.values()) * elements
        stored += sum(info.adapted.memory(info.shape) for info in self.infos.values() if info.adapted)
        held = models * 4 * (elements + (rows + cols) * k) + 4 * elements
        overlaps = 4 * (2 * k * k + cost.ROW_BLOCK * k) * 2 + 8 * 8 * k * k
        cached = 8 * (rows + cols) * min(rows, cols)  # an entry with all triplets, as read and as tensors
        working = max(cost.workspace(self.shape, k), cached)
        return stored + (2 if self.double else 1) * (held + overlaps + working)

    @property
    def flops(self) -> int:
        """Floating-point operations, to first order."""
        (rows, cols), models, k = self.shape, len(self.infos), self.known
        pairs = 2 * models - 3
        decomposed = models * cost.flops(self.shape, k, matrices=1)
        return decomposed + pairs * 6 * (rows + cols) * k * k


@dataclass(frozen=True)
class Matching:
    """Everything that will be measured. `hash` identifies it, whatever the checkpoints' paths."""

    models: Mapping[str, Checkpoint]
    ranks: tuple[str, ...]
    quick: bool
    matrices: tuple[Matrix, ...]
    attentions: tuple[Attention, ...]
    embedding: str | None
    head: str | None
    remarks: tuple[str, ...]

    @property
    def base(self) -> str:
        """The name of the first model."""
        return next(iter(self.models))

    @property
    def decoder(self) -> str:
        """The stack of the base's text decoder, or nothing."""
        decoder = self.models[self.base].anatomy.decoder
        return decoder.prefix if decoder else ""

    @property
    def jobs(self) -> tuple[Matrix | Attention, ...]:
        """What is measured one by one, in the order of the checkpoint."""
        return (*self.matrices, *self.attentions)

    @cached_property
    def hash(self) -> str:
        """Hex digest of what is measured."""
        digest = hashlib.blake2b(digest_size=16)
        tied = [checkpoint.tied for checkpoint in self.models.values()]
        head_dims = [attention.head_dim for attention in self.attentions]
        settings = [list(self.models), self.ranks, self.quick, self.embedding, self.head, self.decoder, tied, head_dims]
        digest.update(json.dumps(settings).encode())
        for job in self.jobs:
            infos = list(job.tensors())
            places = [(info.name, info.dtype.name, info.shape, info.file, info.start) for info in infos]
            digest.update(json.dumps([job.name, places]).encode())
            if any(info.adapted for info in infos):
                digest.update(json.dumps([info.adapted and info.adapted.key() for info in infos]).encode())
        return digest.hexdigest()

    @property
    def kept_bytes(self) -> int:
        """What all decompositions take in float32."""
        return sum(4 * len(self.models) * sum(matrix.shape) * matrix.known for matrix in self.matrices)

    def peak_memory(self, workers: int, libraries: int = 0) -> int:
        """Upper bound of the process's resident memory in bytes with so many workers and no `--memory`."""
        return INTERPRETER_BYTES + libraries + sum(sorted((job.memory for job in self.jobs), reverse=True)[:workers])

    def check_memory(self, limit: int, libraries: int = 0) -> None:
        """Raises PlanError when a matrix alone takes more than a process of `limit` bytes has room for.

        `libraries` are the bytes that others than Python and torch take.
        """
        largest = max(self.jobs, key=lambda job: job.memory)
        needed = self.peak_memory(1, libraries)
        if needed > limit:
            message = (
                f"takes {largest.memory:,} bytes while it is measured, beside {INTERPRETER_BYTES + libraries:,} for "
                f"Python and its libraries; the limit is {limit:,}: raise `--memory` to at least {needed:,}, leave it "
                f"out with `--exclude`{'' if self.quick else ', or add `--quick`'}"
            )
            raise PlanError([Fault(f"`{largest.name}`", message)])
