"""Compares every tensor of two models, streamed by worker threads, and keeps what the adapter stores of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from threading import Lock
from typing import Protocol

import torch

from surgery import crew
from surgery.analysis.change import norm
from surgery.crew import Stopped
from surgery.dtypes import DType
from surgery.errors import CheckpointError, NumericalError
from surgery.extraction.choice import Aim, Choice, Target
from surgery.extraction.factors import fit
from surgery.extraction.output import Parts, Write, factor_names, whole_name
from surgery.extraction.report import Row
from surgery.layout import Entry
from surgery.operand import Operand, as_bytes
from surgery.reader import Reader
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import require_finite


class Progress(Protocol):
    """Who wants to know how far a run is. `finished` is called by the worker threads, one at a time."""

    def begin(self, choice: Choice) -> None:
        """The run starts."""

    def finished(self, target: Target, resumed: bool) -> None:
        """A tensor is done; `resumed` tells whether an earlier run had done it."""

    def stopping(self) -> None:
        """The run was interrupted and waits for the tensors at hand."""


def make_parts(
    choice: Choice,
    parts: Parts,
    dtype: DType,
    *,
    workers: int,
    memory: int | None,
    device: str,
    progress: Progress | None,
) -> None:
    """Make what `parts` does not have yet.

    Each worker does one tensor at a time with one thread of arithmetic, so the bytes depend neither on the number of
    workers nor on the order. `memory` bounds the process, in bytes, and has passed `Choice.check_memory`. Raises
    CheckpointError, NumericalError, OutputError.
    """
    if progress is not None:
        progress.begin(choice)
    with ExitStack() as stack:
        readers = (stack.enter_context(Reader(choice.base)), stack.enter_context(Reader(choice.model)))
        making = _Making(parts, readers, choice.aim, dtype, torch.device(device), progress)
        jobs = sorted(enumerate(choice.targets), key=lambda job: -job[1].flops)
        crew.run(jobs, making, workers=workers, memory=memory)
        for reader in readers:
            reader.check_unchanged()


class _Making:
    """What the crew does with the tensors."""

    def __init__(
        self,
        parts: Parts,
        readers: tuple[Reader, Reader],
        aim: Aim,
        dtype: DType,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.parts = parts
        self.readers = readers
        self.aim = aim
        self.dtype = dtype
        self.device = device
        self.progress = progress
        self.decomposer = Decomposer()  # a difference is hardly ever met again
        self._lock = Lock()

    def name(self, job: tuple[int, Target]) -> str:
        return job[1].name

    def memory(self, job: tuple[int, Target]) -> int:
        return job[1].memory

    def prefetch(self, job: tuple[int, Target]) -> None:
        """Let the kernel read the next tensor while this one is worked on."""
        for reader, info in zip(self.readers, (job[1].base, job[1].model), strict=True):
            with suppress(CheckpointError):  # a hint; whoever reads it for good will tell
                reader.prefetch(info.stored)

    def do(self, job: tuple[int, Target], stopping: Callable[[], bool]) -> None:
        number, target = job
        resumed = self.parts.has(target.name, number)
        if not resumed:
            try:
                if target.factors:
                    self._factors(number, target)
                else:
                    self._whole(number, target, stopping)
            except NumericalError as error:
                raise NumericalError(f"`{target.name}`: {error}") from error
        with self._lock:
            if self.progress is not None:
                self.progress.finished(target, resumed)

    def interrupted(self) -> None:
        if self.progress is not None:
            self.progress.stopping()

    def _operand(self, role: int, target: Target) -> Operand:
        info = (target.base, target.model)[role]
        return Operand(info, self.readers[role], target.piece, self.device, double=target.double)

    def _factors(self, number: int, target: Target) -> None:
        """The factors of a matrix's difference."""
        b = self._operand(0, target).load(0, target.base.shape)
        D = self._operand(1, target).load(0, target.base.shape)
        before = norm(b)
        D.sub_(b)
        del b
        require_finite(D, "the difference of the models")
        change = norm(D)
        if change == 0:
            self.parts.save(target.name, number, None, [], lambda _: None)
            return
        found = fit(D, self.aim, self.decomposer, self.dtype.torch)
        if not (found.A.isfinite().all() and found.B.isfinite().all()):
            raise NumericalError(f"its factors leave the range of {self.dtype.torch_name}; take `--dtype float32`")
        row = Row(target.name, "factors", found.rank, change**2, found.left, change / before if before else math.inf)
        entries = [
            Entry(name, self.dtype, tuple(factor.shape), "")
            for name, factor in zip(factor_names(target.name), (found.A, found.B), strict=True)
        ]

        def fill(write: Write) -> None:
            for factor in (found.A, found.B):
                write(as_bytes(factor))

        self.parts.save(target.name, number, row, entries, fill)

    def _whole(self, number: int, target: Target, stopping: Callable[[], bool]) -> None:
        """A tensor that is stored as the model has it, or only compared."""
        changes, befores = [], []
        for W, b in self._pieces(target, stopping):
            befores.append(norm(b) ** 2)
            changes.append(norm(W - b) ** 2)
        change, before = math.fsum(changes), math.fsum(befores)
        if change == 0:
            self.parts.save(target.name, number, None, [], lambda _: None)
            return
        if not math.isfinite(change):
            raise NumericalError("a model holds NaN or infinity there; leave it out with `--exclude`")
        relative = math.sqrt(change / before) if before else math.inf
        if not target.save:
            row = Row(target.name, "nothing", 0, change, change, relative)
            self.parts.save(target.name, number, row, [], lambda _: None)
            return
        dtype = target.model.dtype
        entries = [Entry(whole_name(name), dtype, target.base.shape, "") for name in target.stored_as]

        def fill(write: Write) -> None:
            for _ in entries:
                for W, _ in self._pieces(target, stopping):
                    write(as_bytes(W.to(device="cpu", dtype=dtype.torch)))

        row = Row(target.name, "whole", 0, change, 0.0, relative)
        self.parts.save(target.name, number, row, entries, fill)

    def _pieces(self, target: Target, stopping: Callable[[], bool]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The model's and the base's elements, piece by piece."""
        base, model = self._operand(0, target), self._operand(1, target)
        for first in range(0, target.base.elements, target.piece):
            if stopping():
                raise Stopped
            shape = (min(target.piece, target.base.elements - first),)
            yield model.load(first, shape), base.load(first, shape)
