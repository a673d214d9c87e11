"""Conversations become token ids whose learned part is exactly the answers and the tokens that end them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from evalkit.engines.base import Model
from evalkit.rendering import Renderer
from evalkit.run import plain
from tests.smollm2 import Pair
from tests.tiny_models import TEMPLATE as TINY
from trainers.config import Data
from trainers.data import training_records
from trainers.errors import DataError
from trainers.records import Record
from trainers.sequences import Encoded, encode, encode_all

SPECIAL = (
    "<end>", "<user>", "<assistant>", "<system>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>",
    "[INST]", "[/INST]",
)  # fmt: skip
CORPUS = ["2 + 2 = 4\n\n", "the answer is that there are 24\n", "user\n\nassistant\nsystem\n", '{"formula": "8+1=9"}\n']
PIECES = r"[ ]?\w+|\s*\n+|[ ]?[^\s\w]+|\s+"  # line ends stay together, whatever follows

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATED = "{{ bos_token }}" + (
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') + '<|eot_id|>' }}"
    + LLAMA.removeprefix("{{ bos_token }}")
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
REASONING = (
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """A kind of chat template, the tokens of its tokenizer, and what ends an answer."""

    template: str
    end: str
    eos: str
    bos: str | None = None
    one_sequence: bool = True  # whether the turns of the plainest conversation fit into one


STYLES = {
    "chatml": Style(CHATML, "<|im_end|>", "<|im_end|>"),
    "llama": Style(LLAMA, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "dated": Style(DATED, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "gemma": Style(GEMMA, "<end_of_turn>", "<eos>", "<bos>"),
    "mistral": Style(MISTRAL, "</s>", "</s>", "<s>", one_sequence=False),  # a space before answers that are past
    "tiny": Style(TINY, "<end>", "<end>"),
    "reasoning": Style(REASONING, "<|im_end|>", "<|im_end|>"),
}


def save(directory: Path, style: Style, context: int | None = None, chat: bool = True) -> Renderer:
    """A byte-level tokenizer in which line ends, spaces and letters merge, as in real ones."""
    inner = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(CORPUS * 3, made)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=style.eos, bos_token=style.bos)
    tokenizer.chat_template = style.template if chat else None
    tokenizer.save_pretrained(directory)
    config = {"model_type": "llama"} if context is None else {"model_type": "llama", "max_position_embeddings": context}
    (directory / "config.json").write_text(json.dumps(config))
    ends = [tokenizer.convert_tokens_to_ids(token) for token in {style.end, style.eos}]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return Renderer(Model("tiny", "0", directory))


@pytest.fixture(scope="module", params=STYLES)
def styled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Renderer, Style]:
    style = STYLES[request.param]
    return save(tmp_path_factory.mktemp(request.param), style), style


def talk(*texts: str, given: int = 0) -> Record:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return Record(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts)), "key", given)


def decoded(renderer: Renderer, ids: Sequence[int]) -> str:
    text: str = renderer.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def runs(renderer: Renderer, encoded: Encoded) -> list[tuple[bool, str]]:
    """The text of each run of tokens that are alike in being learned."""
    pairs = zip(encoded.response, encoded.ids, strict=True)
    return [(learned, decoded(renderer, [i for _, i in run])) for learned, run in groupby(pairs, lambda pair: pair[0])]


def learned(renderer: Renderer, sequences: Sequence[Encoded]) -> list[str]:
    return [text for sequence in sequences for marked, text in runs(renderer, sequence) if marked]


def asked(renderer: Renderer, record: Record, number: int, chat: bool = True) -> list[int]:
    """What a model would be given before it says message `number`."""
    return renderer.tokens(record.messages[:number] if chat else plain(record.messages[:number]))


@pytest.mark.parametrize(
    "answer", ["4", "\nthe answer is 4\n", " 24", '{"formula": "8+1=9"}', "<think>x</think>y", "é\n\n"]
)
def test_one_answer(styled: tuple[Renderer, Style], answer: str) -> None:
    """The sequence of one answer is `pair`'s, and its learned text the answer as it is and its end."""
    renderer, style = styled
    record = talk("2 + 2 =", answer)
    (sequence,) = encode(renderer, record, chat=True)
    prompt, response = renderer.pair(record.messages[:-1], answer, end=True)
    assert list(sequence.ids) == prompt + response
    assert list(sequence.response) == [False] * len(prompt) + [True] * len(response)
    assert runs(renderer, sequence) == [
        (False, decoded(renderer, asked(renderer, record, 1))),
        (True, answer + style.end),
    ]


def test_several_answers(styled: tuple[Renderer, Style]) -> None:
    """Every answer is learned once; where the template lets a conversation grow, in one sequence."""
    renderer, style = styled
    texts = ("2 + 2 =", "4", "Sure?", "the answer is 4", "And 3 * 8?", "24")
    sequences = encode(renderer, talk(*texts), chat=True)
    assert learned(renderer, sequences) == [text + style.end for text in texts[1::2]]
    assert len(sequences) == (1 if style.one_sequence else 3)
    if style.one_sequence:
        options = {"tokenize": False, "strftime_now": lambda _: "26 Jul 2024"}
        whole = renderer.tokenizer.apply_chat_template(list(talk(*texts).messages), **options)
        text = decoded(renderer, sequences[0].ids)
        assert whole.startswith(text)
        assert not whole.removeprefix(text).strip()


def test_reasoning_that_is_dropped(tmp_path: Path) -> None:
    """A template that drops earlier reasoning: each answer is learned with it, after turns without it."""
    renderer = save(tmp_path, STYLES["reasoning"])
    first, second = "<think>2 and 2</think>4", "<think>3 * 8</think>24"
    record = talk("2 + 2 =", first, "3 * 8 =", second, "Sure?", "yes", "Really?", "yes!")
    sequences = encode(renderer, record, chat=True)
    assert learned(renderer, sequences) == [text + "<|im_end|>" for text in (first, second, "yes", "yes!")]
    assert len(sequences) == 3  # the last two answers share a prompt that the template leaves alone
    assert "2 and 2" not in decoded(renderer, sequences[1].ids)


def test_given_answers_are_not_learned(styled: tuple[Renderer, Style]) -> None:
    """The answers of a prompt are there and are not marked."""
    renderer, style = styled
    record = talk("2 + 2 =", "5", "Sure?", "4", given=3)
    (sequence,) = encode(renderer, record, chat=True)
    assert learned(renderer, [sequence]) == ["4" + style.end]
    assert "5" in runs(renderer, sequence)[0][1]


def test_plain_text(styled: tuple[Renderer, Style]) -> None:
    """Without the template, each answer follows its prompt as plain text, and the tokenizer's token ends it."""
    renderer, style = styled
    (sequence,) = encode(renderer, talk("2 + 2 =", " 4"), chat=False)
    assert runs(renderer, sequence) == [(False, "2 + 2 ="), (True, " 4" + style.eos)]
    sequences = encode(renderer, talk("2 + 2 =", " 4", "Sure?", "yes"), chat=False)
    assert [runs(renderer, each) for each in sequences] == [
        [(False, "2 + 2 ="), (True, " 4" + style.eos)],
        [(False, "2 + 2 = 4\n\nSure?\n"), (True, "yes" + style.eos)],
    ]


def test_a_system_message_is_not_learned(tmp_path: Path) -> None:
    """It stands before what is learned, in place of the template's own."""
    renderer = save(tmp_path, STYLES["chatml"])
    record = Record(({"role": "system", "content": "Be brief."}, *talk("2 + 2 =", "4").messages), "key")
    (sequence,) = encode(renderer, record, chat=True)
    assert runs(renderer, sequence) == [
        (
            False,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2 =<|im_end|>\n<|im_start|>assistant\n",
        ),
        (True, "4<|im_end|>"),
    ]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
lines = st.lists(st.sampled_from(["4", "\n", " ", "the", "</think>", "é"]), min_size=1, max_size=5).map("".join)
words = (texts | lines).filter(str.strip)


@cache
def saved(name: str, directory: Path) -> Renderer:
    return save(directory / name, STYLES[name])


@given(st.sampled_from(sorted(STYLES)), st.lists(st.tuples(words, words), min_size=1, max_size=3), st.booleans())
def test_every_answer_follows_what_a_model_would_be_asked(
    tmp_path_factory: pytest.TempPathFactory, name: str, turns: list[tuple[str, str]], chat: bool
) -> None:
    """Whatever is said: each answer is learned once, whole, after exactly the tokens of its turn's prompt."""
    renderer = saved(name, tmp_path_factory.getbasetemp() / "styles")
    record = talk(*(text for turn in turns for text in turn))
    numbers = list(record.answers)
    for sequence in encode(renderer, record, chat):
        assert len(sequence.ids) == len(sequence.response)
        marks = list(sequence.response)
        starts = [i for i, mark in enumerate(marks) if mark and (i == 0 or not marks[i - 1])]
        for start in starts:
            number = numbers.pop(0)
            before = record.messages[:number] if chat else plain(record.messages[:number])
            prompt, response = renderer.pair(before, record.messages[number]["content"], end=True)
            assert prompt == asked(renderer, record, number, chat)
            assert list(sequence.ids[:start]) == prompt
            assert list(sequence.ids[start : start + len(response)]) == response
            assert marks[start : start + len(response) + 1] in (
                [True] * len(response),
                [True] * len(response) + [False],
            )
    assert not numbers


def test_all_records_in_order(tmp_path: Path) -> None:
    """The sequences of one record after those of another, none of them too long."""
    renderer = save(tmp_path, STYLES["mistral"], context=200)
    records = [talk("2 + 2 =", "4", "Sure?", "yes"), talk("3 * 8 =", "24")]
    expected = [sequence for record in records for sequence in encode(renderer, record, chat=True)]
    assert encode_all(renderer, records, True, None, "data") == expected
    longest = max(len(sequence.ids) for sequence in expected)
    assert encode_all(renderer, records, True, longest, "data") == expected
    assert encode_all(renderer, [], True, 1, "data") == []


def test_too_long(tmp_path: Path) -> None:
    """How many are too long, which is the longest, and what to do; nothing is cut."""
    renderer = save(tmp_path / "a", STYLES["tiny"], context=30)
    records = [talk("?", "4"), talk("?", "4" * 12), talk("?", "4" * 20), talk("?", "5")]
    lengths = [len(encode(renderer, record, True)[0].ids) for record in records]
    assert lengths == [5, 16, 24, 5]
    for max_length, message in (
        (
            16,
            "1 of 4 sequences is longer than `max_length` 16; the longest, of record 3, has 24; raise `max_length`, or",
        ),
        (15, "2 of 4 sequences are longer than `max_length` 15; the longest, of record 3, has 24; raise `max_length`"),
    ):
        with pytest.raises(DataError) as caught:
            encode_all(renderer, records, True, max_length, "data.jsonl")
        assert str(caught.value).startswith(f"data.jsonl: {message}")
        assert "positions" not in str(caught.value)
    small = save(tmp_path / "b", STYLES["tiny"], context=20)
    for limit in (None, 20, 500):
        with pytest.raises(DataError) as caught:
            encode_all(small, records, True, limit, "data.jsonl")
        assert str(caught.value) == (
            "data.jsonl: 1 of 4 sequences is longer than the model's context of 20 tokens; the longest, of record 3, "
            "has 24; shorten or leave out these records, or choose a model with a longer context"
        )
    with pytest.raises(DataError, match=r"`max_length` 10; .* \(the model's context of 20 tokens is a limit too\)$"):
        encode_all(small, records, True, 10, "data.jsonl")


def test_faults_of_rendering(tmp_path: Path) -> None:
    """The same fault of many records is told once, beside the others, with the remedies of a configuration."""
    gemma = save(tmp_path / "a", STYLES["gemma"], context=20)
    system = Record(({"role": "system", "content": "Be brief."}, *talk("?", "4").messages), "key")
    with pytest.raises(DataError) as caught:
        encode_all(gemma, [talk("?", "4"), system, system, talk("?", "4" * 30)], True, None, "data.jsonl")
    first, second = map(str, caught.value.faults)
    assert first.startswith("data.jsonl: 2 of 4 records, the first of them number 2: `tiny`: its chat template fails (")
    assert "no system role" in first
    assert first.endswith(
        "give another with `chat_template: FILE`, or send the prompts as plain text with `chat: false`"
    )
    assert second.startswith("data.jsonl: 1 of 2 sequences is longer than the model's context")
    with pytest.raises(DataError, match=r"^data: record 1: `tiny` has no chat template; .* with `chat: false`$"):
        encode_all(save(tmp_path / "b", STYLES["tiny"], chat=False), [talk("?", "4")], True, None, "data")


@pytest.mark.real
def test_real_tokenizer(smollm2: Pair) -> None:
    """SmolLM2's own template and tokens: hands of GeneralPoints, and a conversation, in one sequence each."""
    renderer = Renderer(Model("smollm2", "0", smollm2.base))
    records = training_records(Data(task="general_points", n=50), seed=0)
    for record, sequence in zip(records, encode_all(renderer, records, True, None, "data"), strict=True):
        prompt, answer = runs(renderer, sequence)
        assert prompt[1].startswith("<|im_start|>system\n")
        assert prompt[1].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert answer == (True, record.messages[-1]["content"] + "<|im_end|>")
    (sequence,) = encode(renderer, talk("2 + 2 =", "4\n", "Sure?", "yes", "Thanks.", "é"), chat=True)
    assert learned(renderer, [sequence]) == ["4\n<|im_end|>", "yes<|im_end|>", "é<|im_end|>"]
    # a line end at the front would become one token with that of the template
    first, second = encode(renderer, talk("2 + 2 =", "\n 4", "Sure?", "yes"), chat=True)
    assert learned(renderer, [first, second]) == ["\n 4<|im_end|>", "yes<|im_end|>"]
