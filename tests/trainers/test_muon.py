"""Muon beside AdamW: which parameters it takes, a step by hand, and a state that is loaded."""

from __future__ import annotations

import io

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.muon import MuonWithAdamW, layer_matrices


def network(tied: bool = False) -> LlamaForCausalLM:
    """One layer, matrices of several shapes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, attention_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimizer(of: LlamaForCausalLM) -> MuonWithAdamW:
    """Learning rate 0.1, some decay."""
    return MuonWithAdamW(of, 0.1, (0.9, 0.98), 1e-4, 0.01)


def filled(of: LlamaForCausalLM, seed: int) -> None:
    """Random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in of.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_of_the_layers(tied: bool) -> None:
    """All seven of the layer; no embeddings, tied or not, no head, no norm, no bias."""
    made = network(tied)
    chosen = {id(parameter) for parameter in layer_matrices(made)}
    names = [name for name, parameter in made.named_parameters() if id(parameter) in chosen]
    assert len(names) == 7
    assert all(name.startswith("model.layers.0.") and name.endswith("_proj.weight") for name in names)


def test_a_step_by_hand() -> None:
    """The first step of a matrix is the gradient's polar factor (up to Newton and Schulz' 0.7 to 1.2), times
    0.2 sqrt(max(rows, columns)) and the rate, after the decay; other parameters take AdamW's, vectors without decay.
    """
    made, expected = network(), network()
    filled(made, 1)
    filled(expected, 1)
    optimizer(made).step()
    inner = {id(parameter) for parameter in layer_matrices(expected)}
    others = [parameter for parameter in expected.parameters() if id(parameter) not in inner]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.98), eps=1e-4).step()
    for (name, found), start in zip(made.named_parameters(), expected.parameters(), strict=True):
        if id(start) not in inner:
            assert torch.equal(found, start), name
            continue
        assert start.grad is not None
        step = (start * (1 - 0.1 * 0.01) - found).detach() / (0.1 * 0.2 * max(start.shape) ** 0.5)
        U, _, Vh = torch.linalg.svd(start.grad, full_matrices=False)
        turned = U.T @ step @ Vh.T  # a diagonal, if the step has the gradient's directions
        assert torch.linalg.svdvals(step).min() > 0.6
        assert torch.linalg.svdvals(step).max() < 1.3
        assert (turned - turned.diagonal().diag()).abs().max() < 0.05, name  # bfloat16 inside


def test_a_schedule_sets_the_rate_of_both() -> None:
    """With a rate of zero nothing moves."""
    made = network()
    before = [parameter.detach().clone() for parameter in made.parameters()]
    filled(made, 1)
    moving = optimizer(made)
    LambdaLR(moving, lambda _: 0.0)
    moving.step()
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_a_state_that_is_loaded_goes_on() -> None:
    """Three steps, and one with a new optimiser that has loaded the state after two others, end in the same bits."""
    made, again = network(), network()
    moving = optimizer(made)
    for seed in range(2):
        filled(made, seed)
        moving.step()
    file = io.BytesIO()
    torch.save(moving.state_dict(), file)
    file.seek(0)
    again.load_state_dict(made.state_dict())
    other = optimizer(again)
    other.load_state_dict(torch.load(file, weights_only=True))
    for each, its in ((made, moving), (again, other)):
        for seed in (5, 6):
            filled(each, seed)
            its.step()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_a_closure_is_called_once() -> None:
    """Its loss is what the step gives."""
    made = network()
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        filled(made, 1)
        return 3.0

    assert optimizer(made).step(closure) == 3.0
    assert calls == [True]
