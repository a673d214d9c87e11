from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from surgery.errors import NumericalError
from surgery.ops.restore_directions import RestoreDirections
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from tests.strategies import SPECTRA, pairs, tuned, weight


def restore(**parameters: object) -> RestoreDirections:
    return RestoreDirections.model_validate({"op": "restore_directions", "from": "base", **parameters})


def outer(op: RestoreDirections, n: int) -> Tensor:
    """Which of n indices are replaced."""
    head, tail = op.head.of(n), op.tail.of(n)
    return torch.tensor([i < head or i >= n - tail for i in range(n)])


def formula(op: RestoreDirections, W: Tensor, b: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The published formula as written, from two full SVDs."""
    U, S, Vh = torch.linalg.svd(W.to(dtype), full_matrices=False)
    Ub, Sb, Vbh = torch.linalg.svd(b.to(dtype), full_matrices=False)
    replaced = outer(op, len(S))
    S = torch.where(replaced, Sb if op.singular_values == "from" else S, S)
    return (torch.where(replaced, Ub, U) * S) @ torch.where(replaced[:, None], Vbh, Vh)


def polar_formula(op: RestoreDirections, W: Tensor, b: Tensor) -> Tensor:
    """Both mixed factors replaced by their polar factors X (X^T X)^{-1/2}, in float64."""

    def polar(X: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(X.mT @ X)
        return X @ (vectors / values.sqrt()) @ vectors.mT

    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    Ub, Sb, Vbh = torch.linalg.svd(b.double(), full_matrices=False)
    replaced = outer(op, len(S))
    S = torch.where(replaced, Sb if op.singular_values == "from" else S, S)
    return (polar(torch.where(replaced, Ub, U)) * S) @ polar(torch.where(replaced[:, None], Vbh, Vh).mT).mT


def pair(kind: str, shape: tuple[int, int], change: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    b = weight(generator, kind, *shape)
    return tuned(generator, b, change).float(), b.float()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(360, 220), (220, 260), (240, 240)])
@pytest.mark.parametrize("change", [0.01, 0.3])
@pytest.mark.parametrize("kind", SPECTRA)
def test_error_is_no_larger_than_that_of_the_float32_svd(kind: str, change: float, shape: tuple[int, int]):
    """Against a float64 reference, no result is further off than the plain float32 route's.

    Where few directions cross the boundary at `head`, the float32 SVD may be lucky; its ordinary error, 1e-6, is
    the measure then.
    """
    W, b = pair(kind, shape, change)
    for head, tail in ((44, 0), (110, 0), (0, 44), (22, 22)):
        op = restore(head=head, tail=tail)
        reference = formula(op, W, b)
        plain = distance(formula(op, W, b, torch.float32), reference)
        found = distance(op.apply(W, {"base": b}, Decomposer()), reference)
        assert found <= max(plain, 1e-6), (head, tail)


@pytest.mark.parametrize("values", ["start", "from"])
@pytest.mark.parametrize(("head", "tail"), [("20%", 0), (7, "10%"), (0, 5), ("all", 0), (20, 30), (60, 0)])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_result_is_the_published_formula(shape: tuple[int, int], head: str | int, tail: str | int, values: str):
    """Head, tail and both, counts and percentages, own and restored values, up to all directions."""
    W, b = pair("decaying", shape, 0.3)
    op = restore(head=head, tail=tail, singular_values=values)
    assert distance(op.apply(W, {"base": b}, Decomposer()), formula(op, W, b)) < 3e-6


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize(("head", "tail"), [(8, 0), (0, 4), (8, 4)])
@pytest.mark.parametrize("values", ["start", "from"])
def test_polar_is_the_nearest_orthonormal_factors(shape: tuple[int, int], head: int, tail: int, values: str):
    """`polar` equals the formula with (X^T X)^{-1/2}."""
    W, b = pair("decaying", shape, 0.1)
    op = restore(head=head, tail=tail, singular_values=values, orthogonalize="polar")
    assert distance(op.apply(W, {"base": b}, Decomposer()), polar_formula(op, W, b)) < 1e-5


@settings(deadline=None, max_examples=60)
@given(pairs(), st.integers(1, 60), st.integers(0, 40), st.sampled_from(["rotate", "polar"]), st.booleans())
def test_orthogonalized_result_has_the_values_that_were_set(
    matrices: tuple[Tensor, Tensor], head: int, tail: int, orthogonalize: str, own: bool
):
    """With `rotate` and `polar` the singular values of W' are S*, for any pair of matrices."""
    b, W = matrices
    op = restore(
        head=f"{head}%",
        tail=f"{tail}%",
        orthogonalize=orthogonalize,
        singular_values="start" if own else "from",
    )
    found = torch.linalg.svdvals(op.apply(W, {"base": b}, Decomposer()).double())
    S, Sb = torch.linalg.svdvals(W.double()), torch.linalg.svdvals(b.double())
    replaced = outer(op, len(S))
    expected = torch.where(replaced, S if own else Sb, S).sort(descending=True).values
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(torch.maximum(S[0], Sb[0])) + 1e-30)


@settings(deadline=None, max_examples=40)
@given(pairs(), st.integers(1, 24), st.sampled_from(["none", "rotate", "polar"]))
def test_restoring_from_itself_changes_nothing(matrices: tuple[Tensor, Tensor], head: int, orthogonalize: str):
    """With b = W the result is W to rounding, whatever its spectrum."""
    for W in matrices:
        found = restore(head=head, orthogonalize=orthogonalize).apply(W, {"base": W.clone()}, Decomposer())
        assert (found - W).norm() <= 1e-5 * W.norm()


@pytest.mark.parametrize("orthogonalize", ["none", "rotate", "polar"])
def test_transposed_inputs_give_the_transposed_result(orthogonalize: str):
    """Rows and columns play the same part."""
    W, b = pair("decaying", (70, 45), 0.3)
    op = restore(head=9, tail=3, orthogonalize=orthogonalize)
    mirrored = op.apply(W.mT.contiguous(), {"base": b.mT.contiguous()}, Decomposer())
    assert distance(mirrored, op.apply(W, {"base": b}, Decomposer()).mT) < 3e-6


@pytest.mark.parametrize("orthogonalize", ["none", "rotate", "polar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_new_and_of_the_same_kind(orthogonalize: str, dtype: torch.dtype):
    """Shape, dtype and contiguity are W's, and the inputs stay as they are, bit by bit."""
    W, b = (X.to(dtype) for X in pair("decaying", (30, 40), 0.3))
    kept = W.clone(), b.clone()
    for head in (8, "all"):
        for values in ("start", "from"):
            op = restore(head=head, orthogonalize=orthogonalize, singular_values=values)
            found = op.apply(W, {"base": b}, Decomposer())
            assert (found.shape, found.dtype, found.is_contiguous()) == (W.shape, dtype, True)
            assert found.data_ptr() not in (W.data_ptr(), b.data_ptr())
            assert torch.equal(W, kept[0])
            assert torch.equal(b, kept[1])
            assert torch.equal(op.apply(W, {"base": b}, Decomposer()), found)


def test_float64_matrices_are_edited_in_float64():
    """A float64 result agrees with the float64 formula to float64's accuracy."""
    generator = torch.Generator().manual_seed(6)
    b = weight(generator, "decaying", 50, 30)
    W = tuned(generator, b, 0.3)
    op = restore(head=6, tail=2)
    assert distance(op.apply(W, {"base": b}, Decomposer()), formula(op, W, b)) < 1e-12


@pytest.mark.parametrize("role", ["result", "base"])
def test_bad_values_name_the_role(role: str):
    """NaN in either matrix is a NumericalError that says which."""
    W, b = pair("flat", (20, 10), 0.1)
    (W if role == "result" else b)[3, 4] = float("nan")
    message = "the tensor being edited has 1 value" if role == "result" else "`base` has 1 value"
    with pytest.raises(NumericalError, match=message):
        restore(head=3).apply(W, {"base": b}, Decomposer())


def test_parallel_threads_give_the_same_bits():
    """Matrices edited at the same time in threads of one torch thread each come out as alone."""
    from concurrent.futures import ThreadPoolExecutor

    jobs = [pair(kind, (300, 200), 0.3) for kind in SPECTRA]
    op = restore(head="20%", orthogonalize="rotate")

    def run(workers: int) -> list[Tensor]:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda job: op.apply(job[0], {"base": job[1]}, Decomposer()), jobs))

    assert all(torch.equal(one, other) for one, other in zip(run(1), run(4), strict=True))


@pytest.mark.parametrize(
    ("parameters", "shape", "expected"),
    [
        ({"head": 1024}, (512, 2048), "restored whole: head 1024 >= 512 directions"),
        ({"head": "all"}, (512, 2048), None),  # whoever writes it knows
        ({"head": 300, "tail": 300}, (512, 512), "restored whole: head 300 + tail 300 >= 512 directions"),
        ({"head": 511}, (512, 2048), None),
    ],
)
def test_remark_tells_what_is_restored_whole(parameters: dict[str, object], shape: tuple[int, int], expected: str):
    """A count that covers all directions of a matrix is remarked upon."""
    assert restore(**parameters).remark(shape) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"head": 0}, "`head` and `tail` are both 0"),
        ({"head": "0%", "tail": "0%"}, "`head` and `tail` are both 0"),
        ({"from": "result", "head": 1}, "found `result`, the tensor being edited"),
        ({"head": 1, "orthogonalize": "qr"}, "'none', 'rotate' or 'polar'"),
        ({}, "head"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters: dict[str, object], message: str):
    """Nothing to restore, oneself as source, unknown words and missing parameters are errors."""
    with pytest.raises(ValidationError, match=message):
        restore(**parameters)


def test_decomposition_is_chosen_once_a_matrix():
    """`none` and `rotate` decompose each of the two matrices once, for the outer triplets only."""
    asked: list[tuple[Tensor, int, int]] = []

    class Recorder(Decomposer):
        def triplets(self, W: Tensor, head: int, tail: int = 0) -> Triplets:
            asked.append((W, head, tail))
            return super().triplets(W, head, tail)

    W, b = pair("decaying", (60, 40), 0.3)
    for orthogonalize in ("none", "rotate"):
        restore(head=8, tail=2, orthogonalize=orthogonalize).apply(W, {"base": b}, Recorder())
    assert [counts for _, *counts in asked] == [[8, 2]] * 4
    assert [matrix is W for matrix, *_ in asked] == [True, False] * 2
