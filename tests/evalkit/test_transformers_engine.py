"""Answers and scores of the transformers engine, against `generate` and plain forward passes one prompt at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig, MistralConfig
from transformers.utils import logging

import evalkit.engines.decoding as decoding
from evalkit.engines.base import Completion, Model, Prompt, Request, Sampling
from evalkit.engines.transformers import TransformersEngine
from evalkit.errors import EngineError
from tests.tiny_models import SPECIAL, save_tiny, tokenizer

VOCABULARY = len(tokenizer())
PROMPTS = [({"role": "user", "content": text},) for text in ("hi", "what is 2+2?", "a" * 40, "", "solve it: ", "zyx")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model with 128 positions."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), context=128)


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[TransformersEngine]:
    """It, loaded."""
    with loaded(tiny) as made:
        yield made


def loaded(path: Path, **options: Any) -> TransformersEngine:
    made = TransformersEngine({"device": "cpu", **options})
    made.load(Model("tiny", "0", path), 128)
    return made


def answers(engine: TransformersEngine, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
    """In the prompts' order, each with its number as seed."""
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    found = dict(engine.generate(requests, sampling))
    return [found[i] for i in range(len(prompts))]


def plainly(path: Path, prompt: Prompt, max_tokens: int) -> list[int]:
    """The greedy tokens by transformers' own `generate`, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    text = tokenizer().apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([text])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return list(made[0, len(text) :].tolist())


def expected(path: Path, prompt: Prompt, max_tokens: int) -> tuple[str, str, int]:
    """Text, finish and number of tokens."""
    made = plainly(path, prompt, max_tokens)
    finish = "stop" if made[-1] == 1 else "length"
    return tokenizer().decode(made, skip_special_tokens=True), finish, len(made)


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_answers_are_those_of_generate(tmp_path: Path, tied: bool) -> None:
    """In a batch of unequal prompts, some of which end early, each row is what it would be alone."""
    path = save_tiny(tmp_path, seed=1, tied=tied)
    with loaded(path) as engine:
        found = answers(engine, PROMPTS, Sampling(max_tokens=40))
    assert [(a.text, a.finish, a.tokens) for a in found] == [expected(path, prompt, 40) for prompt in PROMPTS]


ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "learned positions": lambda **common: GPT2Config(n_embd=64, n_layer=2, n_head=2, **common),
    "sliding window": lambda **common: MistralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        pad_token_id=0,
        **common,
    ),
    "state space": lambda **common: MambaConfig(hidden_size=64, num_hidden_layers=2, pad_token_id=0, **common),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    """Padding and dropped rows do no harm where positions, masks or caches are of another kind; nor in scores."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(ARCHITECTURES[kind](**common)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with loaded(tmp_path) as engine:
        found = answers(engine, PROMPTS, Sampling(max_tokens=16))
        scores = dict(engine.score([(prompt, "ok") for prompt in PROMPTS], end=True))
        alone = [dict(engine.score([(prompt, "ok")], end=True))[0] for prompt in PROMPTS]
    assert [(a.text, a.finish, a.tokens) for a in found] == [expected(tmp_path, prompt, 16) for prompt in PROMPTS]
    for i, single in enumerate(alone):
        assert [s.logprob for s in scores[i]] == pytest.approx([s.logprob for s in single], abs=1e-4)


def test_rows_that_end_leave_the_batch(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees fewer rows as rows end, and no more steps than the longest answer."""
    network = engine._network
    seen = []
    forward = type(network).forward

    def spy(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        seen.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(decoding, "_accepted", lambda _: {"position_ids", "past_key_values", "logits_to_keep"})
    monkeypatch.setattr(type(network), "forward", spy)
    found = answers(engine, PROMPTS, Sampling(1.0, 64))
    lengths = [answer.tokens for answer in found]
    assert min(lengths) < max(lengths)
    assert seen == [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(tiny: Path, engine: TransformersEngine, temperature: float) -> None:
    """Alone, two at a time, in another order: the seed of a request decides."""
    sampling = Sampling(temperature, 24)
    together = answers(engine, PROMPTS, sampling)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    assert [dict(engine.generate([request], sampling))[0] for request in requests] == together
    backwards = dict(engine.generate(requests[::-1], sampling))
    assert [backwards[len(PROMPTS) - 1 - i] for i in range(len(PROMPTS))] == together
    with loaded(tiny, batch_size="2") as other:
        assert answers(other, PROMPTS, sampling) == together


def test_tokens_are_those_that_were_drawn(engine: TransformersEngine) -> None:
    """The prompt's as the template gives them; the answer's with the one that ended it, if one did."""
    renderer = engine._loaded()
    found = answers(engine, PROMPTS, Sampling(1.0, 24))
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert list(answer.prompt_ids) == renderer.tokens(prompt)
        assert (len(answer.prompt_ids), len(answer.ids)) == (answer.prompt_tokens, answer.tokens)
        assert (answer.ids[-1] == renderer.end) == (answer.finish == "stop")
        assert renderer.end not in answer.ids[:-1]
        assert renderer.text(answer.ids) == answer.text
    assert {answer.finish for answer in found} == {"length", "stop"}


def test_seeds_differ(engine: TransformersEngine) -> None:
    """Another seed gives another answer; the same seed the same one."""
    requests = [Request(PROMPTS[0], seed) for seed in (0, 1, 2, 0)]
    found = dict(engine.generate(requests, Sampling(1.0, 16)))
    assert len({found[i].text for i in range(3)}) == 3
    assert found[0] == found[3]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_first_tokens_come_as_often_as_their_probabilities(
    tiny: Path, engine: TransformersEngine, temperature: float
) -> None:
    """2,000 consecutive seeds against softmax(logits / temperature), by a chi-square test on the commoner tokens."""
    n = 2000
    ids = engine._loaded().tokens(PROMPTS[0])
    model = AutoModelForCausalLM.from_pretrained(tiny).double().eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    probabilities = (logits / temperature).softmax(-1)
    counts = torch.zeros(VOCABULARY, dtype=torch.float64)
    choose = decoding.draws(temperature, range(n))
    for token in choose(logits.float().expand(n, -1), range(n)):
        counts[token] += 1
    common = probabilities * n >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*(probabilities[common] * n).tolist(), probabilities[~common].sum().item() * n]
    assert len(observed) > 10
    assert chisquare(observed, wanted).pvalue > 0.01
    found = dict(engine.generate([Request(PROMPTS[0], seed) for seed in range(64)], Sampling(temperature, 1)))
    texts = [engine._loaded().text([token]) for token in choose_anew(logits, temperature, 64)]
    assert [found[i].text for i in range(64)] == texts


def choose_anew(logits: torch.Tensor, temperature: float, n: int) -> list[int]:
    """The first draws of seeds 0 to n - 1."""
    return decoding.draws(temperature, range(n))(logits.float().expand(n, -1), range(n))


def test_draws_at_the_edges() -> None:
    """Tokens that are ruled out never come; near temperature 0 the likeliest does."""
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf]]).expand(500, -1)
    assert set(decoding.draws(1.0, range(500))(logits, range(500))) == {1, 2}
    assert set(decoding.draws(1e-6, range(500))(logits * 1.0, range(500))) == {1}


def test_flags_of_the_generation_configuration_have_no_effect(tmp_path: Path) -> None:
    """Repetition penalties, temperatures and the like that a checkpoint brings are ignored; its end tokens count."""
    path = save_tiny(tmp_path)
    with loaded(path) as engine:
        before = answers(engine, PROMPTS, Sampling(max_tokens=24))
    flags = {"repetition_penalty": 5.0, "temperature": 0.1, "do_sample": True, "max_new_tokens": 1, "min_new_tokens": 9}
    (path / "generation_config.json").write_text(json.dumps({**flags, "eos_token_id": [1]}))
    with loaded(path) as engine:
        assert answers(engine, PROMPTS, Sampling(max_tokens=24)) == before
    character = before[0].text[2]
    end = tokenizer().convert_tokens_to_ids(character)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    with loaded(path) as engine:
        found = answers(engine, PROMPTS[:1], Sampling(max_tokens=24))[0]
    assert found.finish == "stop"
    assert found.text == before[0].text.partition(character)[0]
    assert found.tokens == len(found.text) + 1


def test_tokenizer_without_pad_token(tmp_path: Path) -> None:
    """Padding needs no token of its own."""
    path = save_tiny(tmp_path)
    with loaded(path) as engine:
        before = answers(engine, PROMPTS, Sampling(max_tokens=16))
    for file in ("tokenizer_config.json", "config.json", "generation_config.json"):
        data = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({key: value for key, value in data.items() if not key.startswith("pad_")}))
    with loaded(path) as engine:
        assert answers(engine, PROMPTS, Sampling(max_tokens=16)) == before


def test_stop_texts(engine: TransformersEngine) -> None:
    """The first stop that comes is cut off and ends its row, long before `max_tokens`."""
    whole = answers(engine, PROMPTS[:1], Sampling(max_tokens=40))[0].text
    stop = whole[5:8]
    found = answers(engine, PROMPTS[:1], Sampling(max_tokens=40, stop=("never to be seen", stop, "")))[0]
    assert found.text == whole[: whole.index(stop)]
    assert found.finish == "stop"
    assert found.tokens == len(found.ids) == whole.index(stop) + 3


def test_requests_without_room_come_first(engine: TransformersEngine) -> None:
    """A prompt that leaves no room for `max_tokens` is not answered, to the token."""
    fitting, long = "a" * 118, "a" * 119
    requests = [Request(fitting), Request(long), Request("a")]
    found = list(engine.generate(requests, Sampling(max_tokens=10)))
    assert found[0] == (1, Completion("", "context", 119, 0))
    assert {i for i, answer in found if answer.finish != "context"} == {0, 2}


def test_nothing_to_do(engine: TransformersEngine) -> None:
    """No requests, no pairs, no tokens."""
    assert list(engine.generate([], Sampling())) == []
    assert list(engine.score([], end=True)) == []
    assert list(engine.score([("a", "")], end=False)) == [(0, [])]
    assert answers(engine, ["a"], Sampling(max_tokens=0)) == [
        Completion("", "length", 1, 0, (tokenizer().convert_tokens_to_ids("a"),))
    ]


@pytest.mark.parametrize("end", [False, True])
def test_scores_against_a_float64_forward_pass(tiny: Path, engine: TransformersEngine, end: bool) -> None:
    """Each answer token's log-probability, and whether it is the likeliest, one pair at a time and unpadded."""
    model = AutoModelForCausalLM.from_pretrained(tiny).double().eval()
    pairs: list[tuple[Prompt, str]] = [(prompt, "z" * (3 * i) + "ok") for i, prompt in enumerate(PROMPTS)]
    first = answers(engine, PROMPTS[:1], Sampling(max_tokens=8))[0].text
    pairs += [(PROMPTS[0], first), ("plain", " text")]
    scores = dict(engine.score(pairs, end))
    assert all(score.greedy for score in scores[len(PROMPTS)][: len(first)])
    for i, (prompt, answer) in enumerate(pairs):
        before = list(prompt) if isinstance(prompt, str) else ["<user>", *prompt[0]["content"], "<assistant>"]
        tokens = [*answer, *(["<end>"] if end else [])]
        ids = tokenizer().convert_tokens_to_ids([*before, *tokens])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        logprobs = logits.log_softmax(-1)
        assert len(scores[i]) == len(tokens)
        for j, score in enumerate(scores[i], start=len(before)):
            assert score.logprob == pytest.approx(logprobs[j - 1, ids[j]].item(), abs=1e-4)
            assert score.greedy == (int(logits[j - 1].argmax()) == ids[j])


def test_scores_do_not_depend_on_the_batch(tiny: Path, engine: TransformersEngine) -> None:
    """Alone, or padded among longer pairs, a pair has the same scores; long answers are put together rightly."""
    pairs: list[tuple[Prompt, str]] = [("a", "bc"), ("a" * 60, "b"), ("b", "cde" * 20)]
    together = dict(engine.score(pairs, end=True))
    with loaded(tiny, batch_size=1) as other:
        alone = dict(other.score(pairs, end=True))
    for i in range(len(pairs)):
        assert [s.logprob for s in together[i]] == pytest.approx([s.logprob for s in alone[i]], abs=1e-4)
        assert [s.greedy for s in together[i]] == [s.greedy for s in alone[i]]


def test_float32_in_pieces(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces in which logits become float32 do not show."""
    whole = list(engine.score([("a", "bcdefg")], end=True))
    monkeypatch.setattr(decoding, "POSITIONS", 2)
    assert list(engine.score([("a", "bcdefg")], end=True)) == whole


def test_scoring_beyond_the_context_is_refused(engine: TransformersEngine) -> None:
    """A pair that the model has no positions for has no scores worth the name."""
    with pytest.raises(EngineError, match=r"`tiny` has 128 positions, and prompt 1 with its answer takes 130 tokens"):
        list(engine.score([("a", "b"), ("a" * 100, "b" * 30)], end=False))


def test_out_of_memory_halves_the_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch too large for the GPU is done in halves, and one row too large is an error."""
    sizes = []
    limit = 2
    real = decoding.decode

    def short(network: Any, prompts: Any, *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(network, prompts, *rest)

    with loaded(tiny) as engine:
        before = answers(engine, PROMPTS, Sampling(max_tokens=4))
        monkeypatch.setattr(decoding, "decode", short)
        assert answers(engine, PROMPTS, Sampling(max_tokens=4)) == before
        assert sizes[:2] == [6, 3]
        assert sum(size for size in sizes if size <= limit) == len(PROMPTS)
        limit = 0
        with pytest.raises(EngineError, match="`tiny`: the memory of `cpu` does not hold 46 tokens"):
            answers(engine, PROMPTS, Sampling(max_tokens=4))


def test_batches_keep_within_their_tokens(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and answer of all rows, padding included, take no more tokens than the limit, the longest rows first."""
    seen: list[list[int]] = []
    real = decoding.decode

    def spy(network: Any, prompts: Any, *rest: Any) -> Any:
        seen.append([len(prompt) for prompt in prompts])
        return real(network, prompts, *rest)

    monkeypatch.setattr(decoding, "decode", spy)
    with loaded(tiny) as engine:
        engine._tokens = 60
        answers(engine, ["a" * n for n in (3, 40, 9, 10, 1)], Sampling(max_tokens=10))
    assert seen == [[40], [10, 9, 3], [1]]


def test_load_replaces_the_model(tiny: Path, tmp_path: Path) -> None:
    """After another checkpoint is loaded it answers, and the former is gone."""
    other = save_tiny(tmp_path, seed=5)
    with loaded(tiny) as engine:
        engine.load(Model("other", "1", other), 128)
        assert [answer.text for answer in answers(engine, PROMPTS, Sampling(max_tokens=12))] == [
            expected(other, prompt, 12)[0] for prompt in PROMPTS
        ]
    with pytest.raises(EngineError, match="holds no model"):
        list(engine.generate([Request("a")], Sampling()))


def test_dtype(tmp_path: Path) -> None:
    """The checkpoint's own by default, or the one asked for."""
    path = save_tiny(tmp_path, dtype=torch.bfloat16)
    for options, dtype in ({}, torch.bfloat16), ({"dtype": "float32"}, torch.float32):
        with loaded(path, **options) as engine:
            assert engine._network.dtype == dtype
            assert answers(engine, PROMPTS, Sampling(max_tokens=4))


def test_versions() -> None:
    """The packages that answers depend on."""
    assert set(TransformersEngine().versions()) == {"transformers", "tokenizers", "torch"}


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({}, {}),
        ({"batch_size": "16", "dtype": None}, {}),
        ({"dtype": "auto"}, {}),
        ({"device": "cpu", "dtype": "float32", "batch_size": 2}, {"device": "cpu", "dtype": "float32"}),
        ({"attn_implementation": "eager"}, {"attn_implementation": "eager"}),
    ],
)
def test_identity(options: dict[str, Any], identity: dict[str, Any]) -> None:
    """What is given and has another value than by default; the size of batches makes no other results."""
    assert TransformersEngine(options).identity == identity


def test_loading_leaves_the_libraries_settings_alone(tiny: Path) -> None:
    """Progress bars and verbosity are as before, and so is the state of torch's random numbers."""
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state().tolist()
    with loaded(tiny) as engine:
        answers(engine, PROMPTS, Sampling(1.0, 4))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state().tolist()) == before


def test_no_chat_template(tmp_path: Path) -> None:
    """Messages need a template, plain text none."""
    with loaded(save_tiny(tmp_path, chat_template=None)) as engine:
        assert answers(engine, ["hi"], Sampling(max_tokens=2))
        with pytest.raises(EngineError, match="`tiny` has no chat template"):
            answers(engine, PROMPTS, Sampling(max_tokens=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batchsize": 4}, "has no option `batchsize`; did you mean `batch_size`?"),
        ({"xyzzy": 4}, "has no option `xyzzy`; the options: `device`, `dtype`"),
        ({"batch_size": 0}, "`batch_size` .* is `0`; expected a positive whole number"),
        ({"batch_size": "many"}, "`batch_size` .* is `many`; expected a positive"),
        ({"batch_size": True}, "`batch_size` .* is `true`; expected a positive"),
        ({"batch_size": 2.0}, "`batch_size` .* is `2.0`; expected a positive"),
        ({"dtype": "int8"}, "`dtype` .* is `int8`; expected one of `auto`, `bfloat16`"),
        ({"device": "gpu"}, "`device` .* is `gpu`; expected `cpu`, `cuda`"),
        ({"attn_implementation": "someone/kernel"}, "`attn_implementation` .* is `someone/kernel`; expected one of"),
    ],
)
def test_options_are_checked_before_anything_else(options: dict[str, Any], message: str) -> None:
    """Unknown and ill-typed options are refused when the engine is made."""
    with pytest.raises(EngineError, match=message):
        TransformersEngine(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(tiny: Path) -> None:
    """A GPU asked for is not replaced in silence."""
    with pytest.raises(EngineError, match="`device` is `cuda:7`, but this machine has 0 GPUs"):
        loaded(tiny, device="cuda:7")


def test_special_tokens_of_the_tiny_model_are_where_these_tests_think() -> None:
    """`<end>` is token 1."""
    assert SPECIAL.index("<end>") == 1
