from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from surgery.ops.restore_directions import RestoreDirections
from surgery.spectral import cost
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import outer_triplets
from tests.strategies import tuned, weight


def peak(work: Callable[[], object]) -> int:
    """The most bytes of torch tensors alive at once during `work`, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("orthogonalize", ["none", "rotate", "polar"])
@pytest.mark.parametrize(
    ("kind", "head", "tail"),
    [("decaying", "20%", 0), ("outlier", "20%", 0), ("steep", "20%", "40%"), ("flat", "all", 0)],
)
@pytest.mark.parametrize("shape", [(320, 320), (160, 2300)])
def test_workspace_bounds_what_is_allocated(
    shape: tuple[int, int], kind: str, head: str, tail: str, orthogonalize: str
):
    """No edit, whichever route it takes, has more in torch tensors at once than `workspace` says."""
    generator = torch.Generator().manual_seed(0)
    b = weight(generator, kind, *shape)
    W, b = tuned(generator, b, 1e-7).float(), b.float()
    op = RestoreDirections.model_validate(
        {
            "op": "restore_directions",
            "from": "base",
            "head": head,
            "tail": tail,
            "orthogonalize": orthogonalize,
        }
    )
    used = peak(lambda: op.apply(W, {"base": b}, Decomposer()))
    assert used < op.workspace(shape) - cost.LIBRARY
    assert used > 0.1 * (op.workspace(shape) - cost.LIBRARY)


@pytest.mark.parametrize("kind", ["decaying", "steep", "flat"])
def test_workspace_bounds_the_iteration(monkeypatch: pytest.MonkeyPatch, kind: str):
    """The same where the leading triplets come from an iteration or, for `flat`, where it gives up."""
    monkeypatch.setattr(cost, "LANCZOS_SIDE", 300)
    W = weight(torch.Generator().manual_seed(0), kind, 400, 320).float()
    assert cost.iterative(320, 16)
    used = peak(lambda: outer_triplets(W, 16))
    assert used < cost.workspace((400, 320), 16) - cost.LIBRARY


def test_flops_grow_with_the_work():
    """More directions, rotation, and full factors cost more, in this order; both orientations cost the same."""
    shape = (2048, 512)
    counts = [
        cost.flops(shape, 50),
        cost.flops(shape, 100),
        cost.flops(shape, 100, orthogonalize="rotate"),
        cost.flops(shape, 100, orthogonalize="polar"),
    ]
    assert counts == sorted(counts)
    assert cost.flops((512, 2048), 50) == cost.flops(shape, 50)
    assert cost.flops(shape, 50, matrices=1) * 2 == cost.flops(shape, 50)


def test_flops_of_small_heads_are_few():
    """A head for which an iteration is used costs less than half of one for which it is not."""
    assert cost.iterative(2048, 102)
    assert not cost.iterative(2048, 205)
    assert 2 * cost.flops((2048, 2048), 102) < cost.flops((2048, 2048), 205)
    assert cost.flops((2048, 2048), 102) < cost.flops((2048, 2048), 102, tail=1)


@pytest.mark.parametrize(("n", "head", "expected"), [(2048, 410, 614), (100, 20, 36), (100, 50, None), (100, 0, None)])
def test_padding_is_a_tenth_and_at_least_16(n: int, head: int, expected: int | None):
    """The subspace is wider than what is asked, and given up where it would be most of the space."""
    assert cost.padded(n, head) == expected
