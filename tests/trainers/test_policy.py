"""Log-probabilities, values and entropies against plain forward passes of one sequence without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers import policy as module
from trainers.errors import TrainingError
from trainers.policy import Batch, Outputs, Policy, ValueHead, collate, disable_dropout
from trainers.ppo_loss import policy_loss

VOCABULARY = 50
TEMPERATURE = 0.7


class WithoutSelection(LlamaForCausalLM):
    """As architectures that make the logits of all positions, and have no `logits_to_keep`."""

    def forward(  # type: ignore[override]
        self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, use_cache: bool | None = None
    ) -> Any:
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


def llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM) -> Any:
    return kind(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            initializer_range=0.3,
            attention_dropout=0.3,
        )
    )


def gpt2() -> Any:
    """Absolute positions, a tied head, dropout of three kinds."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    )


NETWORKS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "gpt2": gpt2,
    "without logits_to_keep": lambda: llama(WithoutSelection),
}


def make(network: Any, dtype: torch.dtype = torch.float64) -> Policy:
    """In training mode, without dropout, and with values that are not 0."""
    head = ValueHead(32)
    nn.init.normal_(head.last.weight)
    made = Policy(network, head).to(dtype).train()
    disable_dropout(made.network)
    return made


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=NETWORKS)
def policy(request: pytest.FixtureRequest) -> Policy:
    """Of each architecture, in float64."""
    return make(NETWORKS[request.param]())


def sequences(lengths: list[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of such lengths."""
    random = Random(0)
    pairs = [([random.randrange(VOCABULARY) for _ in range(n)] for n in pair) for pair in lengths]
    prompts, responses = zip(*pairs, strict=True)
    return list(prompts), list(responses)


PROMPTS, RESPONSES = sequences([(3, 5), (9, 1), (1, 8), (6, 0)])


def run(policy: Policy, batch: Batch, temperature: float = TEMPERATURE, entropy: bool = True) -> Outputs:
    found: Outputs = policy(batch.ids, batch.mask, batch.positions, batch.responses, temperature, entropy)
    return found


def together(policy: Policy, pad: int = 0) -> Outputs:
    return run(policy, collate(PROMPTS, RESPONSES, pad, "cpu"))


def plainly(policy: Policy, prompt: list[int], response: list[int]) -> tuple[list[float], list[float], float]:
    """Log-probabilities and entropies of a response's tokens, and the prompt's value, by one forward pass."""
    out = policy.network(torch.tensor([[*prompt, *response]]), output_hidden_states=True)
    logprobs = (out.logits[0] / TEMPERATURE).log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    chosen = [logprobs[i, token].item() for i, token in zip(places, response, strict=True)]
    entropies = [-(logprobs[i].exp() * logprobs[i]).sum().item() for i in places]
    state = out.hidden_states[-1][0, len(prompt) - 1]
    head = policy.value_head
    return chosen, entropies, head.last(head.second(head.first(state).relu()).relu()).item()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_against_plain_forward_passes(kind: str) -> None:
    """Each row of a padded batch is what its sequence alone is: token by token, their sum, the value, the entropy."""
    policy = make(NETWORKS[kind]())
    found = together(policy)
    assert found.entropy is not None
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        chosen, entropies, value = plainly(policy, prompt, response)
        n = len(response)
        assert found.logprobs[i, :n].tolist() == pytest.approx(chosen, abs=1e-9)
        assert found.logprobs[i].sum().item() == pytest.approx(sum(chosen), abs=1e-9)
        assert found.entropy[i, :n].tolist() == pytest.approx(entropies, abs=1e-9)
        assert found.values[i].item() == pytest.approx(value, abs=1e-9)
        assert not found.logprobs[i, n:].any()
        assert not found.entropy[i, n:].any()
    assert len(set(found.values.tolist())) == len(PROMPTS)


def test_networks_without_selection() -> None:
    """What makes the logits of all positions gives the same as what makes those of the last ones."""
    one, other = make(llama()), make(llama(WithoutSelection))
    other.load_state_dict(one.state_dict())
    for found, wanted in zip(together(other), together(one), strict=True):
        assert torch.allclose(found, wanted, atol=1e-9, rtol=0)


def test_only_the_positions_asked_for_are_made_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many columns as responses have go through the output embeddings; the last token not even through the rest."""
    policy = make(llama())
    seen: list[tuple[int, ...]] = []
    embed, head = policy.network.get_input_embeddings(), policy.network.get_output_embeddings()
    for part in (embed, head):
        monkeypatch.setattr(part, "forward", lambda x, f=part.forward: (seen.append(tuple(x.shape)), f(x))[1])
    together(policy)
    assert seen == [(4, 9 + 8 - 1), (4, 8, 32)]


def gradients(policy: Policy, prompts: list[list[int]], responses: list[list[int]], pad: int = 0) -> list[torch.Tensor]:
    """Of a sum that weighs every output."""
    found = run(policy, collate(prompts, responses, pad, "cpu"))
    assert found.entropy is not None
    loss = found.logprobs.sum() + 0.1 * found.entropy.sum() + 3 * found.values.square().sum()
    return list(torch.autograd.grad(loss, list(policy.parameters())))


def test_padding_and_neighbours_change_nothing(policy: Policy) -> None:
    """Outputs and gradients of a batch are those of its rows alone, and no matter which token the padding is."""
    whole, other = together(policy), together(policy, pad=7)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = run(policy, collate([prompt], [response], 0, "cpu"))
        n = len(response)
        for found, padded, single in zip(whole, other, alone, strict=True):
            if found.ndim == 2:
                found, padded, single = found[:, :n], padded[:, :n], single[:, :n]
            assert torch.allclose(found[i], single[0], atol=1e-9, rtol=0)
            assert torch.allclose(found[i], padded[i], atol=1e-9, rtol=0)
    batch = gradients(policy, PROMPTS, RESPONSES)
    padded = gradients(policy, PROMPTS, RESPONSES, pad=7)
    alone = [gradients(policy, [p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    for i, found in enumerate(batch):
        assert torch.allclose(found, padded[i], atol=1e-8, rtol=1e-9)
        assert torch.allclose(found, torch.stack([each[i] for each in alone]).sum(dim=0), atol=1e-8, rtol=1e-9)


def test_values_teach_the_network(policy: Policy) -> None:
    """The gradient of a value flows into the network; it does not depend on the response."""
    found = together(policy)
    taught = torch.autograd.grad(found.values.sum(), list(policy.network.parameters()), allow_unused=True)
    assert sum(each.abs().sum().item() for each in taught if each is not None) > 1
    others = run(policy, collate(PROMPTS, [[1], [2, 3], [4], [5]], 0, "cpu"))
    assert torch.allclose(others.values, found.values, atol=1e-9, rtol=0)


def test_gradients_against_finite_differences() -> None:
    """Of a weight of every tensor, by central differences; GPT-2 has no norm that is in float32 all along."""
    policy = make(gpt2())

    def loss() -> torch.Tensor:
        found = together(policy)
        assert found.entropy is not None
        return found.logprobs.sum() + found.entropy.sum() + found.values.square().sum()

    loss().backward()
    random, step = Random(1), 1e-6
    for parameter in policy.parameters():
        weights, place = parameter.data.view(-1), random.randrange(parameter.numel())
        before = weights[place].item()
        ends = []
        for way in (step, -step):
            weights[place] = before + way
            ends.append(loss().item())
        weights[place] = before
        assert parameter.grad is not None
        assert parameter.grad.view(-1)[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("positions", [1, 12, 10_000])
def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    """However many positions become float32 at a time, outputs and gradients are the same."""
    policy = make(llama())
    whole, wanted = together(policy), gradients(policy, PROMPTS, RESPONSES)
    monkeypatch.setattr(module, "POSITIONS", positions)
    for found, before in zip(together(policy), whole, strict=True):
        assert torch.allclose(found, before, atol=1e-12, rtol=0)
    for left, right in zip(gradients(policy, PROMPTS, RESPONSES), wanted, strict=True):
        assert torch.allclose(left, right, atol=1e-9, rtol=1e-9)


def test_gradient_checkpointing(policy: Policy) -> None:
    """Activations that are computed twice give the same outputs and gradients."""
    whole, wanted = together(policy), gradients(policy, PROMPTS, RESPONSES)
    policy.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert policy.network.is_gradient_checkpointing
    for found, before in zip(together(policy), whole, strict=True):
        assert torch.allclose(found, before, atol=1e-12, rtol=0)
    for left, right in zip(gradients(policy, PROMPTS, RESPONSES), wanted, strict=True):
        assert torch.allclose(left, right, atol=1e-9, rtol=1e-9)


def test_ratios_begin_at_1(policy: Policy) -> None:
    """The same weights give the same log-probabilities to the last bit, with gradient or without, in training mode."""
    batch = collate(PROMPTS, RESPONSES, 0, "cpu")
    with torch.no_grad():
        old = run(policy, batch).logprobs
    new = run(policy, batch).logprobs
    for ratio in ("response", "token"):
        _, statistics = policy_loss(new, old, batch.response_mask, torch.ones(4), 0.1, ratio, 4)  # type: ignore[arg-type]
        figures = statistics.figures()
        assert (figures["ratio_min"], figures["ratio_max"]) == (1, 1)


def test_probabilities_are_of_the_tempered_distribution() -> None:
    """Over all tokens that can come next they add up to 1, at any temperature; at a low one they differ from others."""
    policy = make(llama())
    batch = collate([[3, 4, 5]] * VOCABULARY, [[token] for token in range(VOCABULARY)], 0, "cpu")
    cold, warm = (run(policy, batch, temperature).logprobs[:, 0] for temperature in (0.2, 1.0))
    assert cold.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.allclose((cold - 5 * warm).diff(), torch.zeros(VOCABULARY - 1, dtype=torch.float64), atol=1e-9)


def test_a_token_that_is_ruled_out_has_no_part_in_the_entropy() -> None:
    """Logits of minus infinity: entropy and gradient stay finite; of two equal tokens it is ln 2."""
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], dtype=torch.float64, requires_grad=True)
    logprob, entropy = module._token_figures(logits, torch.tensor([[1]]), 1.0, True)
    assert entropy is not None
    assert (logprob.item(), entropy.item()) == pytest.approx((-0.69314718056, 0.69314718056), abs=1e-10)
    (found,) = torch.autograd.grad((logprob + entropy).sum(), logits)
    assert found.flatten().tolist() == pytest.approx([-0.5, 0.5, 0.0], abs=1e-12)


def test_float32_under_autocast() -> None:
    """A network in bfloat16 arithmetic, figures in float32; the entropy only where it is asked for."""
    policy = make(llama(), torch.float32)
    batch = collate(PROMPTS, RESPONSES, 0, "cpu")
    exact = run(policy, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(policy, batch, entropy=False)
    assert found.entropy is None
    assert found.logprobs.dtype == found.values.dtype == torch.float32
    assert torch.allclose(found.logprobs, exact.logprobs, atol=0.5)
    (found.logprobs.sum() + found.values.sum()).backward()
    for parameter in policy.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_the_value_head() -> None:
    """h -> h/4 -> h/8 -> 1 in float32, and 0 at the start; its last layer can learn from there."""
    head = ValueHead(576)
    assert [tuple(each.weight.shape) for each in (head.first, head.second, head.last)] == [
        (144, 576),
        (72, 144),
        (1, 72),
    ]
    values = head(torch.randn(3, 576, dtype=torch.bfloat16))
    assert values.tolist() == [0, 0, 0]
    assert values.dtype == torch.float32
    (values - 1).square().sum().backward()
    assert head.last.weight.grad is not None
    assert head.last.weight.grad.abs().sum() > 0
    assert ValueHead(4)(torch.ones(2, 4)).shape == (2,)


def test_collate() -> None:
    """Prompts end and responses begin in the same columns; positions count tokens."""
    batch = collate([[5, 6], [7]], [[8], [9, 10, 11]], 3, "cpu")
    assert batch.ids.tolist() == [[5, 6, 8, 3, 3], [3, 7, 9, 10, 11]]
    assert batch.mask.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 2], [0, 0, 1, 2, 3]]
    assert batch.responses == 3
    assert batch.response_mask.tolist() == [[True, False, False], [True, True, True]]
    assert collate([[1], [2]], [[], []], 0, "cpu").response_mask.tolist() == [[False], [False]]


def test_no_hooks_are_left() -> None:
    """Neither after a forward pass nor after one that failed."""
    policy = make(llama())
    together(policy)
    with pytest.raises(IndexError):
        run(policy, collate([[VOCABULARY]], [[0]], 0, "cpu"))
    assert not policy.network.get_output_embeddings()._forward_pre_hooks


def test_dropout() -> None:
    """Of modules, of plain attributes and of configurations that are read at each step: all goes."""
    falcon = FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_dropout=0.4,
            attention_dropout=0.4,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for network in (gpt2(), llama(), falcon):
        network.train()
        assert not torch.equal(network(ids).logits, network(ids).logits)
        disable_dropout(network)
        assert torch.equal(network(ids).logits, network(ids).logits)
        assert torch.equal(network(ids).logits, network.eval()(ids).logits)


def test_networks_that_are_not_understood() -> None:
    """Those without output embeddings, and those that go around them."""
    network = llama()
    network.set_output_embeddings(None)
    with pytest.raises(TrainingError, match="`LlamaForCausalLM` does not make its logits by one module"):
        Policy(network, ValueHead(32))

    class Around(LlamaForCausalLM):
        def get_output_embeddings(self) -> nn.Module:
            return nn.Linear(1, 1)

    with pytest.raises(TrainingError, match=r"`Around` .* train another architecture"):
        together(make(llama(Around)))
