"""The model that lm-evaluation-harness sees: it answers each request once, from a journal or by an engine."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blake3 import blake3
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evalkit.engines.base import Engine, Prompt, Request, Sampling
from evalkit.errors import TaskError
from evalkit.run import seed_of
from surgery.wording import show

MAX_TOKENS = 256  # of an answer, where a task does not say: the harness's own default

_CHAT = "\x00messages:"  # begins a text that stands for messages; no prompt holds this character
_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness's order
# Of sampling, what engines here do not do, with the values that mean nothing.
_UNSUPPORTED = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "frequency_penalty": 0}


class Answers(Protocol):
    """Keeps answers under names, so that a killed run goes on; `evalkit.journal.Journal` is one."""

    def get(self, name: str, /) -> dict[str, Any] | None:
        """What was put under a name, or None."""

    def put(self, name: str, row: Mapping[str, Any], /) -> None:
        """Keep a row of plain data."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request: its name in the journal, the engine's prompt, and the answer to score or the way to sample."""

    name: str
    prompt: Prompt
    answer: str = ""
    sampling: Sampling | None = None
    seed: int = 0


class HarnessModel(LM):  # type: ignore[misc] # the harness is not typed
    """Answers the harness's requests with the model that an engine holds.

    Messages travel through the harness as text and are rendered by the engine, so that a model gets the tokens of its
    own chat template and no second first token. `generated`, `reused` and `no_room` count requests.
    """

    def __init__(self, engine: Engine, journal: Answers, seed: int = 0) -> None:
        super().__init__()
        self.engine, self.journal, self.seed = engine, journal, seed
        self.generated = self.reused = self.no_room = 0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer prompts, each as its task says: greedily, or each repetition with a seed of its own.

        A prompt without room in the model's context is answered with nothing, and counted.
        """
        asked = []
        again: Counter[str] = Counter()
        for request in requests:
            context, options = request.args[:2]
            sampling = _sampling(dict(options), str(request.task_name))
            named = _name("generate", self.seed, context, _plain(sampling))
            # Sampled again, a prompt is another request; a greedy answer is the same each time.
            again[named] += sampling.temperature > 0
            name = _name(named, again[named])
            asked.append(_Asked(name, _prompt(context), sampling=sampling, seed=seed_of(name)))
        rows = self._answered(asked, self._generate)
        self.no_room += sum(row["finish"] == "context" for row in rows)
        return [str(row["text"]) for row in rows]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation after its context: the log-probability, and whether greedy decoding would give it."""
        asked = []
        for request in requests:
            context, continuation = request.args[:2]
            prompt = _prompt(context)
            if isinstance(prompt, str):  # words are tokenised with the space before them
                kept = prompt.rstrip()
                prompt, continuation = kept, prompt[len(kept) :] + continuation
            asked.append(_Asked(_name("score", context, continuation), prompt, continuation))
        return [(float(row["logprob"]), bool(row["greedy"])) for row in self._answered(asked, self._score)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of whole texts, after the token that begins or ends texts.

        Raises EngineError for a text that is longer than the model's context.
        """
        asked = [_Asked(_name("score", "", request.args[0]), "", request.args[0]) for request in requests]
        return [float(row["logprob"]) for row in self._answered(asked, self._score)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as text that `_prompt` turns back. Raises TaskError where the task begins the answer itself."""
        if not add_generation_prompt:
            raise TaskError(
                "the task begins the model's answer itself (`gen_prefix`), which chat templates do not allow for here; "
                "send its prompts as plain text with `--no-chat`"
            )
        return _CHAT + json.dumps(chat_history)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps prepared requests under, which is not done here."""
        return ""

    def _answered(self, asked: Sequence[_Asked], answer: Any) -> list[dict[str, Any]]:
        """The rows of all requests in order; what the journal lacks is asked once and kept as it comes."""
        rows: dict[str, dict[str, Any]] = {}
        new: dict[str, _Asked] = {}
        for each in asked:
            kept = None if each.name in rows or each.name in new else self.journal.get(each.name)
            if kept is not None:
                rows[each.name] = kept
            elif each.name not in rows:
                new[each.name] = each
        self.reused += len(rows)
        for name, row in answer(list(new.values())):
            self.journal.put(name, row)
            rows[name] = row
            self.generated += 1
        return [rows[each.name] for each in asked]

    def _generate(self, asked: Sequence[_Asked]) -> Iterator[tuple[str, dict[str, Any]]]:
        groups: defaultdict[Sampling, list[_Asked]] = defaultdict(list)
        for each in asked:
            assert each.sampling is not None
            groups[each.sampling].append(each)
        for sampling, group in groups.items():
            requests = [Request(each.prompt, each.seed) for each in group]
            for i, completion in self.engine.generate(requests, sampling):
                text = completion.text
                for stop in sampling.stop:  # servers take few stop texts: what they did not cut is cut here
                    text = text.split(stop, 1)[0]
                yield group[i].name, {"text": text, "finish": completion.finish, "tokens": completion.tokens}

    def _score(self, asked: Sequence[_Asked]) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, scores in self.engine.score([(each.prompt, each.answer) for each in asked], end=False) if asked else ():
            total = sum(score.logprob for score in scores)
            greedy = all(score.greedy for score in scores)
            yield asked[i].name, {"logprob": total, "greedy": greedy, "tokens": len(scores)}


def _prompt(context: str) -> Prompt:
    """Messages where the text stands for some, else the text."""
    if not context.startswith(_CHAT):
        return context
    try:
        return tuple(json.loads(context.removeprefix(_CHAT)))
    except ValueError as error:
        raise TaskError("the task adds text to its rendered messages; send its prompts with `--no-chat`") from error


def _sampling(options: Mapping[str, Any], task: str) -> Sampling:
    """How a task wants its answers. Raises TaskError for what the engines here cannot do."""
    stops = options.get("until") or []
    stops = [stops] if isinstance(stops, str) else stops
    temperature = float(options.get("temperature") or 0)
    if options.get("do_sample") is False:
        temperature = 0.0
    if temperature > 0:
        for name, neutral in _UNSUPPORTED.items():
            if options.get(name) not in (None, neutral) and (name, options[name]) != ("top_k", -1):
                raise TaskError(
                    f"`lm_eval:{task}` samples with `{name}: {show(options[name]).strip('`')}`, which engines here "
                    "cannot; in a copy of the task's file leave it out, or set `do_sample: false`"
                )
    tokens = next((options[name] for name in _TOKENS if options.get(name) is not None), MAX_TOKENS)
    return Sampling(temperature, int(tokens), tuple(str(stop) for stop in stops if stop))


def _plain(sampling: Sampling) -> list[Any]:
    """A way of sampling as plain data."""
    return [sampling.temperature, sampling.max_tokens, *sampling.stop]


def _name(*parts: object) -> str:
    """The name of a request in the journal: a digest of all that its answer depends on besides the model."""
    return blake3(json.dumps(parts).encode()).hexdigest()[:32]
