"""The spectral edits against the plain route of two `torch.linalg.svd` calls, side by side.

    python benchmarks/spectral.py                  a Llama-3.2-1B layer, a minute or two
    python benchmarks/spectral.py --hidden 1024    the same proportions at half the size, ten seconds

Columns: seconds of the plain route, two float32 SVDs and the formula as published, one matrix after the other with both
threads; seconds of our edits with two worker threads of one torch thread each; and the limit: the matrix products of
`none` alone, without any decomposition, with the same workers. In brackets, how many times faster than the plain route.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from surgery.ops.restore_directions import RestoreDirections
from surgery.spectral.cost import padded
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.gram import gram

THREADS = 2
EDITS = ("none", "rotate", "polar")


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """The matrices of one layer in the proportions of Llama-3.2-1B (hidden 2048)."""
    small, large = hidden // 4, hidden * 4
    return {
        "q, o": (hidden, hidden),
        "k, v": (small, hidden),
        "gate, up": (large, hidden),
        "down": (hidden, large),
    }


COUNTS = {"q, o": 2, "k, v": 2, "gate, up": 2, "down": 1}


def pair(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A base and a tuned matrix: a decaying spectrum with a few large values, and a change of 5 %."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    b = torch.randn(m, n, generator=generator) / max(shape) ** 0.5
    r = min(shape) // 8
    left, right = torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator)
    b += (left * torch.linspace(1, 0.05, r)) @ right / (m * n) ** 0.5
    change = torch.randn(m, n, generator=generator)
    return b, b + 0.05 * b.norm() / change.norm() * change


def plain(W: Tensor, b: Tensor, head: int) -> Tensor:
    """The published formula as written, with two full float32 SVDs."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    Ub, _, Vbh = torch.linalg.svd(b, full_matrices=False)
    left = torch.cat([Ub[:, :head], U[:, head:]], dim=1)
    right: Tensor = torch.cat([Vbh[:head], Vh[head:]])
    return torch.mm(left * S, right)


def products(W: Tensor, b: Tensor, head: int) -> None:
    """The matrix products of `none` and nothing else."""
    for X in (W, b):
        tall = X if X.shape[0] >= X.shape[1] else X.mT
        n = tall.shape[1]
        Q = tall[:n, : padded(n, head) or head]
        gram(tall, torch.float32)
        gram(Q, torch.float64)
        Y = tall @ Q
        gram(Y, torch.float64)
        Z = Q[: Q.shape[1], :head]
        (Y @ Z) @ (Q @ Z).mT


def seconds(work: Callable[..., object], jobs: list[tuple[Any, ...]], workers: int) -> float:
    """Wall time of all jobs, with so many worker threads of one torch thread each; one worker has all threads."""
    torch.set_num_threads(THREADS // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(THREADS // workers,)) as pool:
        start = time.perf_counter()
        for result in [pool.submit(work, *job) for job in jobs]:
            result.result()
        return time.perf_counter() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size of the layer (default 2048)")
    parser.add_argument("--head", default="20%", help="directions to restore (default 20%%)")
    parser.add_argument("--edits", nargs="+", default=["none", "rotate"], choices=EDITS)
    args = parser.parse_args()
    ops = {
        edit: RestoreDirections.model_validate(
            {"op": "restore_directions", "from": "base", "head": args.head, "orthogonalize": edit}
        )
        for edit in args.edits
    }
    head = next(iter(ops.values())).head
    total: dict[str, float] = {}
    warm = pair((256, 256), seed=1)
    for work in (plain, products):  # the first calls load and start the library's kernels and threads
        work(*warm, head.of(256))
    print(f"hidden {args.hidden}, head {args.head}, {THREADS} threads, torch {torch.__version__}")
    for name, shape in shapes(args.hidden).items():
        b, W = pair(shape, seed=0)
        h, count = head.of(min(shape)), COUNTS[name]
        # `down` stands alone in its layer; two layers are timed together, so that both workers have one
        jobs = [(W, b)] * max(count, THREADS)
        scale = count / len(jobs)
        times = {"plain": count * seconds(plain, [(W, b, h)], 1)}
        for edit, op in ops.items():
            times[edit] = scale * seconds(lambda W, b, op=op: op.apply(W, {"base": b}, Decomposer()), jobs, THREADS)
        times["products"] = scale * seconds(products, [(*job, h) for job in jobs], THREADS)
        report(f"{name} {shape[0]}x{shape[1]}", times)
        total = {key: total.get(key, 0.0) + value for key, value in times.items()}
    report("layer", total)


def report(name: str, times: dict[str, float]) -> None:
    """One line: seconds, and how many times faster than the plain route."""
    cells = [f"{key} {value:7.2f} s ({times['plain'] / value:4.1f}x)" for key, value in times.items()]
    print(f"{name:20}", "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
