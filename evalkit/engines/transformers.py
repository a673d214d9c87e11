"""Answers by Hugging Face transformers: works on any machine, with any decoder that transformers knows."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from evalkit.engines.base import Completion, Engine, Finish, Model, Prompt, Request, Sampling, TokenScore
from evalkit.engines.stopping import cut, stopped
from evalkit.errors import EngineError
from evalkit.rendering import Renderer, renderer_versions
from surgery.wording import quoted, show, suggestion

T = TypeVar("T")

# A batch holds as many rows as keep prompt and answer within so many tokens together. On a GPU they take 8 GiB of
# cache in a model of 8 billion parameters (128 KiB a token, Llama 3), and on a CPU 2 GiB.
TOKENS = {"cuda": 65_536, "cpu": 16_384}
ROWS = {"cuda": 256, "cpu": 64}  # more rows hardly raise the throughput, and finished batches are what a kill leaves

_DTYPES = ("auto", "bfloat16", "float16", "float32")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")  # none comes from the hub
_EXPECTED = {  # of each option: the pattern of its text, and its description
    "device": (r"cpu|cuda(:\d+)?|mps", "`cpu`, `cuda`, `cuda:1` or the like, or `mps`"),
    "dtype": ("|".join(_DTYPES), f"one of {quoted(_DTYPES)}"),
    "batch_size": (r"0*[1-9]\d{0,8}", "a positive whole number"),
    "attn_implementation": ("|".join(_ATTENTION), f"one of {quoted(_ATTENTION)}"),
}


@dataclass(frozen=True, slots=True)
class _Options:
    device: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    attn_implementation: str | None = None


class TransformersEngine(Engine):
    """A checkpoint in this process, on a GPU if there is one.

    `options`, as text or plain values: `device` (`cpu`, `cuda`, `cuda:1`, `mps`), `dtype` (`auto`, the checkpoint's,
    or another), `batch_size` (rows at a time), `attn_implementation` (transformers' name). Raises EngineError for
    others. The sampling flags of a checkpoint's `generation_config.json` have no effect; its end tokens do. The
    tokens of an answer are counted with the one that ended it.
    """

    name: ClassVar[str] = "transformers"

    # what to do about such a failure
    _not_finite: ClassVar[str] = (
        "look for such values in its weights, or set the option `dtype` to `float32` if they are too large for float16"
    )
    _no_memory: ClassVar[str] = "lower `--max-tokens`, or set the option `dtype` to `bfloat16`"

    def __init__(self, options: Mapping[str, Any] | None = None, chat_template: str | None = None) -> None:
        self._options = _parse(options or {})
        self._chat_template = chat_template
        self._renderer: Renderer | None = None
        self._network: Any = None
        self._tokens = self._rows = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """The options that differ from their defaults, without `batch_size`."""
        # which changes answers by rounding only: each row is answered by its own seed, and scored alone
        counted = ("device", "dtype", "attn_implementation")
        given = {name: getattr(self._options, name) for name in counted}
        return {name: value for name, value in given.items() if value != getattr(_Options(), name)}

    def versions(self) -> Mapping[str, str]:
        """Those of torch, and of what makes prompts tokens."""
        try:
            return {**renderer_versions(), "torch": version("torch")}
        except PackageNotFoundError as error:
            raise _missing() from error

    def load(self, model: Model, context: int) -> None:  # noqa: ARG002, the cache grows as it is needed
        """Read the checkpoint into memory; the former is given back first."""
        self.close()
        if find_spec("transformers") is None:
            raise _missing()
        from evalkit.engines.loading import load, quiet

        with quiet():
            renderer = Renderer(model, self._chat_template)
            device = _device(self._options.device)
            network = load(model, device, self._options.dtype, self._options.attn_implementation)
        self._hold(renderer, network, device)

    def _hold(self, renderer: Renderer, network: Any, device: str) -> None:
        """Answer with this network from here on."""
        self._renderer, self._network = renderer, network
        kind = "cpu" if device == "cpu" else "cuda"
        self._tokens = TOKENS[kind]
        self._rows = ROWS[kind]
        if self._options.batch_size is not None:
            self._tokens, self._rows = 2**62, self._options.batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer in batches, those with the longest prompts first, and yield the answers of each batch as it ends."""
        renderer = self._loaded()
        prompts = [self._checked(renderer.tokens(request.prompt)) for request in requests]
        lengths = {}
        for i, ids in enumerate(prompts):
            if renderer.room(len(ids), sampling.max_tokens):
                lengths[i] = len(ids) + sampling.max_tokens
            else:
                yield i, Completion("", "context", len(ids), 0)

        def answer(batch: Sequence[int]) -> list[Completion]:
            seeds = [requests[i].seed for i in batch]
            return self._answer([prompts[i] for i in batch], seeds, sampling)

        yield from self._batches(lengths, answer)

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        """Score given answers in batches, the longest first; raises EngineError for one that the model has no room for.

        An answer without tokens has no scores.
        """
        renderer = self._loaded()
        pairs = [renderer.pair(prompt, answer, end) for prompt, answer in prompts]
        for i, (prompt, answer) in enumerate(pairs):
            self._checked([*prompt, *answer])
            if not renderer.room(len(prompt), len(answer)):
                raise EngineError(
                    f"`{renderer.name}` has {renderer.context} positions, and prompt {i} with its answer takes "
                    f"{len(prompt) + len(answer)} tokens; shorten it, or leave it out"
                )

        def scores(batch: Sequence[int]) -> list[list[TokenScore]]:
            from evalkit.engines.decoding import likelihoods

            return likelihoods(self._network, [pairs[i] for i in batch])

        yield from ((i, []) for i, (_, answer) in enumerate(pairs) if not answer)
        yield from self._batches({i: len(p) + len(a) for i, (p, a) in enumerate(pairs) if a}, scores)

    def close(self) -> None:
        """Give the checkpoint's memory back."""
        if self._network is None:
            return
        self._network = self._renderer = None
        import torch

        gc.collect()  # modules and their hooks refer to each other
        torch.cuda.empty_cache()

    def _loaded(self) -> Renderer:
        if self._renderer is None or self._network is None:
            raise EngineError("the engine `transformers` holds no model; `load` one first")
        return self._renderer

    def _checked(self, ids: list[int]) -> list[int]:
        """The ids, all of which the network has: on a GPU a wrong one ends the process."""
        known = self._network.get_input_embeddings().num_embeddings
        if max(ids) >= known:
            raise EngineError(
                f"`{self._loaded().name}`: its tokenizer gives the token {max(ids)}, but the model has {known} tokens; "
                "use the tokenizer that the model was trained with"
            )
        return ids

    def _answer(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """Answer one batch."""
        from evalkit.engines.decoding import decode, draws, greedy

        renderer = self._loaded()

        def ended(_row: int, answer: Sequence[int]) -> bool:
            return answer[-1] in renderer.stops or stopped(renderer, answer, 1, sampling.stop)

        choose = draws(sampling.temperature, seeds) if sampling.temperature > 0 else greedy
        answers = decode(self._network, prompts, sampling.max_tokens, choose, ended)
        completions = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ended_itself = bool(answer) and answer[-1] in renderer.stops
            text, was_cut = cut(renderer.text(answer[:-1] if ended_itself else answer), sampling.stop)
            finish: Finish = "stop" if ended_itself or was_cut else "length"
            completions.append(Completion(text, finish, len(prompt), len(answer), tuple(prompt), tuple(answer)))
        return completions

    def _batches(self, lengths: Mapping[int, int], work: Callable[[Sequence[int]], list[T]]) -> Iterator[tuple[int, T]]:
        """Do the work on batches of like length; where a GPU is too small for one, on half the tokens from there on."""
        import torch

        from evalkit.engines.decoding import NotFiniteError
        from evalkit.engines.threads import suit_threads, threads_kept

        queue = sorted(lengths, key=lambda i: -lengths[i])
        while queue:
            name = self._loaded().name
            longest = lengths[queue[0]]
            batch = queue[: max(1, min(self._rows, self._tokens // longest))]
            try:
                with threads_kept():
                    suit_threads(self._network)
                    done = work(batch)
            except NotFiniteError as error:
                raise EngineError(
                    f"`{name}` gives NaN or infinity instead of probabilities; {self._not_finite}"
                ) from error
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise EngineError(
                        f"`{name}`: the memory of `{self._network.device}` does not hold {longest} tokens of prompt "
                        f"and answer beside the model; {self._no_memory}"
                    ) from error
                done = []
            if not done:  # out of the handler, whose traceback holds the tensors of the attempt
                self._tokens = longest * (len(batch) // 2)
                torch.cuda.empty_cache()
                continue
            queue = queue[len(batch) :]
            yield from zip(batch, done, strict=True)


def _parse(options: Mapping[str, Any]) -> _Options:
    """The options, or an EngineError for one that is not known or not of its kind."""
    known = list(_Options.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise EngineError(
                f"the engine `transformers` has no option `{name}`; {suggestion(str(name), known, 'the options')}"
            )
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        pattern, expected = _EXPECTED[name]
        text = str(value) if isinstance(value, str) or (name == "batch_size" and type(value) is int) else ""
        if not re.fullmatch(pattern, text, re.ASCII):
            raise EngineError(f"the option `{name}` of the engine `transformers` is {show(value)}; expected {expected}")
    if "batch_size" in given:
        given["batch_size"] = int(given["batch_size"])
    return _Options(**given)


def _device(wanted: str | None) -> str:
    """The device asked for, or the best; raises EngineError where torch cannot use it."""
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": int(wanted.partition(":")[2] or 0) < count}
    if not there[wanted.partition(":")[0]]:
        raise EngineError(
            f"the option `device` is `{wanted}`, but this machine has {count} GPUs that torch {torch.__version__} can "
            "use; leave it out, or install a torch built for the GPU and its driver"
        )
    return wanted


def _missing() -> EngineError:
    return EngineError("the engine `transformers` needs the package; install it with `pip install 'surgery[eval]'`")
