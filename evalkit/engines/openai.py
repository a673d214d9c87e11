"""Answers by a server that speaks OpenAI's protocol: vLLM, TGI, llama.cpp, SGLang, or OpenAI itself."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import urlsplit

from evalkit.engines.base import Completion, Engine, Model, Prompt, Request, Sampling, TokenScore
from evalkit.errors import EngineError
from surgery.wording import did_you_mean, quoted, show, suggestion

# What servers say of a prompt that is too long: OpenAI and vLLM, vLLM, SGLang and llama.cpp, llama.cpp, TGI.
_TOO_LONG = re.compile(
    r"maximum context length|maximum model length|context_length_exceeded|longer than the model.s context|"
    r"context[ _]size|context window|`?inputs`? tokens \+ `?max_new_tokens`?",
    re.IGNORECASE,
)
_LOAD_RETRIES = 1  # a server that is not there should be said to be missing at once
_SHOWN = 500  # characters of a server's message


@dataclass(frozen=True, slots=True)
class _Options:
    concurrency: int = 32
    retries: int = 5
    timeout: float = 600.0


class OpenAIEngine(Engine):
    """A model that a server at `url` (`http://localhost:8000/v1`) holds; the model's name is the server's id for it.

    `options`, as text or plain values: `concurrency` (requests at a time, 32), `retries` (of a request that failed
    on the way or met a busy server, 5, with growing pauses), `timeout` (seconds for one answer, 600). The key is
    `OPENAI_API_KEY`, where the server wants one. The server renders the chat template, so that none can be given,
    and stops where the model's files say; a template that asks for the date gets the server's. `top_p` is sent as 1;
    other flags of the model's generation configuration are the server's (`vllm serve --generation-config vllm` ignores
    them). Raises EngineError for a wrong URL or option.
    """

    name: ClassVar[str] = "openai"
    scores: ClassVar[bool] = False

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._url = _checked_url(url)
        self._options = _parse(options or {})
        self._model: str | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Nothing: the options are about the way to the server, and the answers are its own."""
        return {}

    def versions(self) -> Mapping[str, str]:
        """Nothing: answers depend on the server, which does not tell its version, and not on the client."""
        return {}

    def load(self, model: Model, context: int) -> None:  # noqa: ARG002, the server's memory is its own affair
        """Ask the server whether it has the model."""
        self._model = None
        openai = _openai()
        try:
            with openai.OpenAI(**self._client(_LOAD_RETRIES)) as client:
                served = [served.id for served in client.models.list().data]
        except openai.NotFoundError as error:
            if not self._url.endswith("/v1"):
                raise self._error(error, model.name) from error
            served = []  # a server without a list of models
        except openai.OpenAIError as error:
            raise self._error(error, model.name) from error
        except (AttributeError, TypeError, ValueError) as error:  # a page for people, or other data
            raise EngineError(
                f"`{self._url}/models` gives no list of models; is this a server of OpenAI's protocol? {self._advice()}"
            ) from error
        if served and model.name not in served:
            raise EngineError(f"the server at `{self._url}` has no model `{model.name}`; {_known(model.name, served)}")
        self._model = model.name

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer `concurrency` requests at a time; those without room come when the server refuses them.

        When the generator is closed or a request fails, what is under way is dropped at once.
        """
        if self._model is None:
            raise EngineError("the engine `openai` has no model; `load` one first")
        if not requests:
            return
        _openai()  # here, where its absence is reported
        results: SimpleQueue[tuple[int, Completion] | BaseException] = SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._answer_all(self._model, requests, sampling, results))

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(work)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())  # its threads look up addresses

        thread = Thread(target=run, name="openai-engine", daemon=True)
        thread.start()
        try:
            for _ in requests:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        except BaseException:  # a generator that is closed, an interrupt; not at the end, which closes connections
            loop.call_soon_threadsafe(work.cancel)
            raise
        finally:
            thread.join()
            loop.close()

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:  # noqa: ARG002
        """A server does not tell: raises EngineError."""
        raise EngineError("a server does not tell log-probabilities of given answers; use `vllm` or `transformers`")

    def close(self) -> None:
        """Nothing is held between calls."""
        self._model = None

    async def _answer_all(
        self,
        model: str,
        requests: Sequence[Request],
        sampling: Sampling,
        results: SimpleQueue[tuple[int, Completion] | BaseException],
    ) -> None:
        """Put an answer for each request into `results`, or the error of the first that fails."""
        import openai

        numbered = iter(enumerate(requests))

        async def worker(client: Any) -> None:
            for i, request in numbered:  # shared: each takes the next
                results.put((i, await self._answer(client, model, request, sampling)))

        try:
            connection = openai.AsyncOpenAI(**self._client(self._options.retries))
            async with connection as client, asyncio.TaskGroup() as group:
                for _ in range(min(self._options.concurrency, len(requests))):
                    group.create_task(worker(client))
        except BaseExceptionGroup as errors:
            results.put(errors.exceptions[0])
        except Exception as error:  # the client itself cannot be made
            results.put(error)

    async def _answer(self, client: Any, model: str, request: Request, sampling: Sampling) -> Completion:
        import openai

        arguments = {
            "model": model,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
            "top_p": 1.0,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
        }
        try:
            if isinstance(request.prompt, str):
                response = await client.completions.create(prompt=request.prompt, **arguments)
            else:
                messages = [dict(message) for message in request.prompt]
                response = await client.chat.completions.create(messages=messages, **arguments)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422) and _TOO_LONG.search(f"{error.message} {error.code}"):
                return Completion("", "context", 0, 0)
            raise self._error(error, model) from error
        except openai.OpenAIError as error:
            raise self._error(error, model) from error
        try:
            return _completion(response)
        except (AttributeError, IndexError, TypeError) as error:
            raise EngineError(f"the server at `{self._url}` gives an answer without text; {self._advice()}") from error

    def _client(self, retries: int) -> dict[str, Any]:
        """How to reach the server; the client insists on a key, and local servers ask for none."""
        key = os.environ.get("OPENAI_API_KEY") or "none"
        return {"base_url": self._url, "api_key": key, "timeout": self._options.timeout, "max_retries": retries}

    def _error(self, error: Exception, model: str) -> EngineError:
        """What went wrong, in the server's words, and what to do."""
        import openai

        where = f"the server at `{self._url}`"
        if isinstance(error, openai.APITimeoutError):
            return EngineError(
                f"{where} gave no answer within {self._options.timeout:g} s; raise the option `timeout`, or lower "
                "`concurrency`"
            )
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return EngineError(f"cannot reach {where} ({cause}); is it running, and is this its address?")
        if not isinstance(error, openai.APIStatusError):
            return EngineError(f"{where}: {type(error).__name__}: {error}; {self._advice()}")
        advice = {
            401: "set `OPENAI_API_KEY` to a key that it takes",
            403: "set `OPENAI_API_KEY` to a key that it takes",
            404: self._advice(f"is `{model}` the server's name for the model?"),
            429: "lower the option `concurrency`, or raise `retries`",
        }.get(error.status_code)
        if advice is None:
            failed = error.status_code >= 500
            advice = "look into its log, and run again: what is finished is kept" if failed else "change what it names"
        return EngineError(f"{where} answers {error.status_code}: {_message(error)}; {advice}")

    def _advice(self, otherwise: str = "look into its log") -> str:
        return otherwise if self._url.endswith("/v1") else f"most servers want `{self._url}/v1`"


def _completion(response: Any) -> Completion:
    """The first choice of a response of either kind."""
    choice, usage = response.choices[0], response.usage
    text = choice.message.content if hasattr(choice, "message") else choice.text
    return Completion(
        text or "",
        "length" if choice.finish_reason == "length" else "stop",
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
    )


def _message(error: Any) -> str:
    """The server's own message, in one line."""
    body = error.body
    inner = body.get("message") if isinstance(body, Mapping) else None
    text = " ".join(str(inner or error.message).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _known(name: str, served: Sequence[str]) -> str:
    """The end of a message about an unknown model."""
    near = did_you_mean(name, served)
    first = "" if near is None else f"did you mean `{near}`? "
    return f"{first}it has {quoted(sorted(served))}"


def _checked_url(url: str) -> str:
    """The URL without a slash at its end."""
    example = "write `openai:http://localhost:8000/v1`"
    if "@" in url:  # anywhere, since a password may hold what ends an address's first part; no message shows it
        raise EngineError(
            "the engine's URL has an `@`: a name or a password would be kept with the results; set `OPENAI_API_KEY` to "
            f"the key instead, and {example}"
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        valid = False
    if not valid or any(character.isspace() for character in url):
        raise EngineError(f"the engine's URL is {show(url)}; expected the address of a server: {example}")
    if parts.query or parts.fragment:
        raise EngineError(f"the engine's URL has a `?` or `#`; leave out what follows its path: {example}")
    if parts.path.rstrip("/").endswith(("/completions", "/models")):
        raise EngineError(f"the engine's URL is {show(url)}; give the part that all its addresses share: {example}")
    return url.rstrip("/")


def _parse(options: Mapping[str, Any]) -> _Options:
    """The options, or an EngineError for one that is not known or not of its kind."""
    known = [field.name for field in fields(_Options)]
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise EngineError(
                f"the engine `openai` has no option `{name}`; {suggestion(str(name), known, 'the options')}"
            )
        pattern, expected = {
            "concurrency": (r"0*[1-9]\d{0,3}", "a whole number from 1 to 9999"),
            "retries": (r"\d{1,3}", "a whole number from 0 to 999"),
            "timeout": (r"(?=.*[1-9])\d{1,6}(\.\d*)?", "a positive number of seconds"),
        }[name]
        if value is None:
            continue
        text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        if not re.fullmatch(pattern, text, re.ASCII):
            raise EngineError(f"the option `{name}` of the engine `openai` is {show(value)}; expected {expected}")
        given[name] = float(text) if name == "timeout" else int(text)
    return _Options(**given)


def _openai() -> Any:
    """The client's package; raises EngineError where it is missing."""
    try:
        import openai
    except ImportError as error:
        raise EngineError(
            "the engine `openai` needs the package; install it with `pip install 'surgery[eval]'`"
        ) from error
    return openai
