"""Measures every matrix of two or three checkpoints, streamed by worker threads into a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import torch

from surgery import crew
from surgery.analysis.attention import Attention
from surgery.analysis.comparison import EMBEDDINGS, GAUGE, Comparison
from surgery.analysis.gauge import ValueOutput
from surgery.analysis.measure import Measured, measure_attention, measure_matrix
from surgery.analysis.overlap import principal_angles
from surgery.crew import Stopped
from surgery.errors import CheckpointError, NumericalError
from surgery.header import TensorInfo
from surgery.operand import Operand
from surgery.reader import Reader
from surgery.spectral.triplets import require_finite

if TYPE_CHECKING:
    from surgery.analysis.comparison import Array
    from surgery.analysis.matching import Matching, Matrix
    from surgery.analysis.store import Row, Store
    from surgery.spectral.decomposer import Decomposer

Job = tuple[int, "Matrix | Attention"]
EMBEDDING_HEAD = "embedding-head"


class Progress(Protocol):
    """Who wants to know how far a run is. `finished` is called by the worker threads, one at a time."""

    def begin(self, matching: Matching) -> None:
        """The run starts."""

    def finished(self, job: Matrix | Attention, resumed: bool) -> None:
        """A matrix or an attention module is measured; `resumed` tells whether an earlier run had done that."""

    def stopping(self) -> None:
        """The run was interrupted and waits for the matrices at hand."""

    def drawing(self) -> None:
        """Everything is measured; the figures and the report follow."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


def measure_all(
    matching: Matching,
    store: Store,
    *,
    workers: int,
    memory: int | None,
    device: str,
    decomposer: Decomposer,
    progress: Progress | None,
) -> Comparison:
    """Measure what the store does not have yet; the comparison that comes of all.

    Each worker measures one matrix at a time with one thread of arithmetic, so the results depend neither on the
    number of workers nor on the order. `memory` bounds the process, in bytes, and has passed
    `Matching.check_memory`. Raises CheckpointError, NumericalError, OutputError.
    """
    if progress is not None:
        progress.begin(matching)
    jobs = list(enumerate(matching.jobs))
    with ExitStack() as stack:
        readers = {model: stack.enter_context(Reader(checkpoint)) for model, checkpoint in matching.models.items()}
        measuring = _Measuring(matching, store, readers, torch.device(device), decomposer, progress)
        longest_first = sorted(jobs, key=lambda job: -job[1].flops)
        crew.run(longest_first, measuring, workers=workers, memory=memory)
        for reader in readers.values():
            reader.check_unchanged()
    return _collected(matching, store)


class _Measuring:
    """What the crew does with matrices and attention modules."""

    def __init__(
        self,
        matching: Matching,
        store: Store,
        readers: Mapping[str, Reader],
        device: torch.device,
        decomposer: Decomposer,
        progress: Progress | None,
    ) -> None:
        self.matching = matching
        self.store = store
        self.readers = readers
        self.device = device
        self.decomposer = decomposer
        self.progress = progress
        self._lock = Lock()

    def name(self, job: Job) -> str:
        return job[1].name

    def memory(self, job: Job) -> int:
        return job[1].memory

    def prefetch(self, job: Job) -> None:
        """Let the kernel read the next matrix's tensors while this one is measured."""
        if isinstance(job[1], Attention):
            return  # they were read as matrices
        for model, info in job[1].infos.items():
            with suppress(CheckpointError):  # a hint; whoever reads it for good will tell
                self.readers[model].prefetch(info.stored)

    def do(self, job: Job, stopping: Callable[[], bool]) -> None:
        number, what = job
        resumed = self.store.has(what.name, number)
        if not resumed:
            measured = self._attention(what) if isinstance(what, Attention) else self._matrix(what, stopping)
            arrays = {name: array.cpu().numpy() for name, array in measured.arrays.items()}
            self.store.save(what.name, number, measured.rows, arrays)
        with self._lock:
            if self.progress is not None:
                self.progress.finished(what, resumed)

    def interrupted(self) -> None:
        if self.progress is not None:
            self.progress.stopping()

    def _matrix(self, matrix: Matrix, stopping: Callable[[], bool]) -> Measured:
        shape = matrix.shape
        weights = {}
        for model, info in matrix.infos.items():
            weights[model] = self._load(model, info, shape, double=matrix.double, first=matrix.slice * prod(shape))
            if stopping():
                raise Stopped
        ends = (self.matching.embedding, self.matching.head)
        vectors = None not in ends and matrix.name in ends
        try:
            return measure_matrix(matrix, weights, self.decomposer, ranks=self.matching.ranks, right_vectors=vectors)
        except NumericalError as error:
            raise NumericalError(f"`{matrix.name}`: {error}") from error

    def _attention(self, attention: Attention) -> Measured:
        weights = {}
        for model, value in attention.value.items():
            bias, output = attention.bias.get(model), attention.output[model]
            weights[model] = ValueOutput(
                self._load(model, value, value.shape),
                self._load(model, output, output.shape),
                None if bias is None else self._load(model, bias, bias.shape),
            )
        try:
            return measure_attention(attention, weights)
        except NumericalError as error:
            raise NumericalError(f"`{attention.name}`: {error}; or leave it out with `--exclude`") from error

    def _load(
        self, model: str, info: TensorInfo, shape: tuple[int, ...], *, double: bool = False, first: int = 0
    ) -> torch.Tensor:
        reader = self.readers[model]
        double = double or info.dtype.name == "F64"
        loaded = Operand(info, reader, prod(shape), self.device, double=double).load(first, shape)
        require_finite(loaded, f"`{info.name}` of `{model}` (`{info.file}`)")
        return loaded


def _collected(matching: Matching, store: Store) -> Comparison:
    """The tables and spectra of everything that was measured."""
    matrices: list[Row] = []
    gauge: list[Row] = []
    numbers: list[tuple[str, int]] = []
    for number, job in enumerate(matching.jobs):
        (gauge if isinstance(job, Attention) else matrices).extend(store.rows(number))
        if not isinstance(job, Attention):
            numbers.append((job.name, number))
    embeddings, angles = _embeddings(matching, store, dict(numbers))
    frame = pd.DataFrame(matrices)
    if "moved_back" not in frame:
        frame["moved_back"] = np.nan
    return Comparison(
        models={model: checkpoint.source for model, checkpoint in matching.models.items()},
        ranks=matching.ranks,
        quick=matching.quick,
        decoder=matching.decoder,
        matrices=frame,
        gauge=pd.DataFrame(gauge, columns=list(GAUGE)),
        embeddings=pd.DataFrame(embeddings, columns=list(EMBEDDINGS)),
        remarks=matching.remarks,
        spectra=store.write_spectra(numbers, angles),
    )


def _embeddings(matching: Matching, store: Store, numbers: Mapping[str, int]) -> tuple[list[Row], dict[str, Array]]:
    """Embedding against output head, in each model: rows, and the angles between their row spaces."""
    rows: list[Row] = []
    arrays: dict[str, Array] = {}
    if matching.embedding is None:
        return rows, arrays
    tied = matching.head is None  # or the heads are not compared
    matrices = {matrix.name: matrix for matrix in matching.matrices}
    ends = [matrices[name] for name in (matching.embedding, matching.head) if name is not None]
    for model, checkpoint in matching.models.items():
        if tied and not checkpoint.tied:
            continue
        for i, asked in enumerate(matching.ranks):
            rank, size = min(matrix.ranks[i] for matrix in ends), ends[0].shape[1]
            angles = torch.zeros(rank, dtype=torch.float64)
            if not tied:
                A, B = (
                    torch.from_numpy(store.array(numbers[matrix.name], f"right/{model}"))[:, :rank] for matrix in ends
                )
                angles = principal_angles(A, B)
            alignment, angle = float(angles.cos().square().mean()), float(angles.mean())
            rows.append(dict(zip(EMBEDDINGS, (model, rank, size, alignment, angle, tied), strict=True)))
            arrays[f"{EMBEDDING_HEAD}/angles@{asked}/{model}"] = angles.numpy()
    return rows, arrays
