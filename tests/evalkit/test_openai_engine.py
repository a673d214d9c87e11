"""The engine of OpenAI's protocol against a server in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from evalkit.engines.base import Completion, Model, Request, Sampling
from evalkit.engines.openai import OpenAIEngine
from evalkit.errors import EngineError
from tests.evalkit.fake_server import Body, FakeServer, Reply, shout

ASK = ({"role": "user", "content": "hi there"},)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key of the outside, no proxy, and no threads left behind."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("openai", "asyncio"))]


def loaded(server: FakeServer, name: str = "tiny", **options: Any) -> OpenAIEngine:
    engine = OpenAIEngine(server.url, {"retries": 0, **options})
    engine.load(Model(name, "0", None), 0)
    return engine


def test_messages_and_plain_text() -> None:
    """Messages go to chat completions, text to completions; every setting and each seed is sent."""
    with FakeServer() as server:
        engine = loaded(server)
        sampling = Sampling(0.5, 9, ("\n\n",))
        found = dict(engine.generate([Request(ASK, 3), Request("say a word", 4)], sampling))
    assert found == {0: Completion("HI THERE", "stop", 7, 2), 1: Completion("SAY A WORD", "stop", 7, 3)}
    sent = {path: body for path, body, _ in server.requests[1:]}
    settings = {"model": "tiny", "temperature": 0.5, "max_tokens": 9, "stop": ["\n\n"], "top_p": 1.0}
    assert sent == {
        "/v1/chat/completions": {**settings, "seed": 3, "messages": [*ASK]},
        "/v1/completions": {**settings, "seed": 4, "prompt": "say a word"},
    }


def test_finish() -> None:
    """`length` where the server says so, `stop` otherwise; an answer may be empty."""
    replies = {"a": Reply("x", "length"), "b": Reply("", "stop"), "c": Reply("x", "content_filter")}
    with FakeServer(answer=lambda body: replies[body["prompt"]]) as server:
        found = dict(loaded(server).generate([Request(prompt) for prompt in "abc"], Sampling()))
    assert [(found[i].text, found[i].finish) for i in range(3)] == [("x", "length"), ("", "stop"), ("x", "stop")]


def test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the environment is sent; without one, something that servers without keys take."""
    with FakeServer() as server:
        loaded(server)
        monkeypatch.setenv("OPENAI_API_KEY", "sesame")
        loaded(server)
    assert [headers["authorization"] for _, _, headers in server.requests] == ["Bearer none", "Bearer sesame"]


def test_as_many_at_a_time_as_said() -> None:
    """`concurrency` requests are under way at once, never more, and answers come as they finish."""
    barrier = threading.Barrier(4)
    lock = threading.Lock()
    under_way = most = 0

    def answer(body: Body) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        barrier.wait(timeout=10)  # passes only where four are here
        with lock:
            under_way -= 1
        return shout(body)

    with FakeServer(answer=answer) as server:
        engine = loaded(server, concurrency="4")
        found = dict(engine.generate([Request(f"p{i}") for i in range(12)], Sampling()))
    assert {i: answer.text for i, answer in found.items()} == {i: f"P{i}" for i in range(12)}
    assert most == 4


def test_answers_come_as_they_finish() -> None:
    """A slow request holds up no other."""
    release = threading.Event()

    def answer(body: Body) -> Reply:
        if body["prompt"] == "slow":
            release.wait(timeout=10)
        return shout(body)

    with FakeServer(answer=answer) as server:
        stream = loaded(server).generate([Request("slow"), Request("fast")], Sampling())
        assert next(stream)[0] == 1
        release.set()
        assert next(stream)[0] == 0
        assert list(stream) == []


def test_closing_drops_what_is_under_way() -> None:
    """A generator that is closed waits for no answer, sends no further request, and leaves no thread."""
    release = threading.Event()
    others = threading.Semaphore(0)

    def answer(body: Body) -> Reply:
        if body["prompt"] != "p0":
            others.release()
            release.wait(timeout=10)
        return shout(body)

    with FakeServer(answer=answer) as server:
        stream = loaded(server, concurrency=2).generate([Request(f"p{i}") for i in range(50)], Sampling())
        assert next(stream)[0] == 0
        for _ in range(2):  # a connection that is given up half made would be left to the garbage collector
            assert others.acquire(timeout=10)
        stream.close()  # type: ignore[attr-defined]  # an iterator to callers, a generator in fact
        assert not release.is_set()
        assert len(server.requests) == 4  # the list of models, p0, and what took its place
        release.set()


def test_an_error_drops_the_rest() -> None:
    """The first request that fails ends the batch, though others have not been answered."""
    release, arrived = threading.Event(), threading.Event()

    def answer(body: Body) -> Reply:
        if body["prompt"] == "bad":
            assert arrived.wait(timeout=10)
            return Reply("no such thing", status=400)
        arrived.set()
        release.wait(timeout=10)
        return shout(body)

    with FakeServer(answer=answer) as server:
        with pytest.raises(EngineError, match="answers 400: no such thing; change what it names"):
            list(loaded(server).generate([Request("slow"), Request("bad")], Sampling()))
        assert not release.is_set()
        release.set()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 1024 tokens. However, you requested 1300 tokens"),
        (400, "The decoder prompt (length 9000) is longer than the maximum model length of 8192."),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000"),
        (400, "the request exceeds the available context size. try increasing the context size"),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
    ],
)
def test_no_room(status: int, message: str) -> None:
    """A prompt that the server finds too long is `context`, and the others are answered."""

    def answer(body: Body) -> Reply:
        return Reply(message, status=status) if body["prompt"] == "long" else shout(body)

    with FakeServer(answer=answer) as server:
        found = dict(loaded(server).generate([Request("long"), Request("short")], Sampling()))
    assert found == {0: Completion("", "context", 0, 0), 1: Completion("SHORT", "stop", 7, 1)}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply("bad key", status=401), "answers 401: bad key; set `OPENAI_API_KEY`"),
        (Reply("not yours", status=403), "answers 403: not yours; set `OPENAI_API_KEY`"),
        (Reply("no model", status=404), "answers 404: no model; is `tiny` the server's name"),
        (Reply("slow down", status=429), "answers 429: slow down; lower the option `concurrency`"),
        (Reply("engine\ndead", status=500), "answers 500: engine dead; look into its log, and run again"),
        (Reply(raw=b"oops", status=502), "answers 502: .*; look into its log"),
        (Reply(raw=b'{"choices": []}'), "gives an answer without text"),
        (Reply(raw=b"{}"), "gives an answer without text"),
        (Reply(raw=b"<html>", headers={"Content-Type": "text/html"}), "gives an answer without text"),
    ],
)
@pytest.mark.parametrize("prompt", [ASK, "plain"])
def test_faults_of_answers(reply: Reply, message: str, prompt: Any) -> None:
    """The server's words, and what to do."""
    with (
        FakeServer(answer=lambda _: reply) as server,
        pytest.raises(EngineError, match=message) as error,
    ):
        list(loaded(server).generate([Request(prompt)], Sampling()))
    assert server.url in str(error.value)


def test_a_busy_server_is_asked_again() -> None:
    """Passing faults are no faults."""
    soon = {"retry-after-ms": "1"}
    replies = [Reply("busy", status=503, headers=soon), Reply("late", status=429, headers=soon), Reply("fine")]
    with FakeServer(answer=lambda _: replies.pop(0)) as server:
        engine = loaded(server, retries=2)
        assert dict(engine.generate([Request("a")], Sampling()))[0].text == "fine"


def test_no_answer_in_time() -> None:
    """A server that hangs is an error after `timeout` seconds."""
    release = threading.Event()

    def answer(body: Body) -> Reply:
        release.wait(timeout=10)
        return shout(body)

    with FakeServer(answer=answer) as server:
        with pytest.raises(EngineError, match=r"gave no answer within 0.1 s; raise the option `timeout`"):
            list(loaded(server, timeout=0.1).generate([Request("a")], Sampling()))
        release.set()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection asks whether the server is running, at loading and later."""
    monkeypatch.setattr("evalkit.engines.openai._LOAD_RETRIES", 0)
    with FakeServer() as server:
        engine = loaded(server)
    with pytest.raises(EngineError, match=r"cannot reach the server at `.*failed.*is it running"):
        list(engine.generate([Request("a")], Sampling()))
    with pytest.raises(EngineError, match=r"cannot reach the server at `.*refused.*is it running"):
        engine.load(Model("tiny", "0", None), 0)


def test_unknown_model() -> None:
    """The models that the server has are listed, the nearest first."""
    with (
        FakeServer(models=("org/big", "org/tiny")) as server,
        pytest.raises(
            EngineError, match=r"no model `org/tiney`; did you mean `org/tiny`. it has `org/big`, `org/tiny`"
        ),
    ):
        loaded(server, "org/tiney")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (Reply("bad key", status=401), "answers 401: bad key; set `OPENAI_API_KEY`"),
        (Reply(raw=b"<html>hello", headers={"Content-Type": "text/html"}), "gives no list of models"),
        (Reply(raw=b'{"data": [3]}'), "gives no list of models"),
    ],
)
def test_faults_of_the_list(listing: Reply, message: str) -> None:
    """What answers in place of a list of models."""
    with FakeServer(listing=listing) as server, pytest.raises(EngineError, match=message):
        loaded(server)


def test_server_without_a_list() -> None:
    """Some servers list no models: the name is taken as it is."""
    with FakeServer(listing=Reply("?", status=404)) as server:
        assert dict(loaded(server, "any").generate([Request("a")], Sampling()))[0].text == "A"


def test_url_without_v1() -> None:
    """The commonest slip is named."""
    with FakeServer() as server:
        short = server.url.removesuffix("/v1")
        with pytest.raises(EngineError, match=f"answers 404: .*; most servers want `{short}/v1`"):
            OpenAIEngine(short).load(Model("tiny", "0", None), 0)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://a b"])
def test_urls(url: str) -> None:
    """What is no address is refused when the engine is made."""
    with pytest.raises(EngineError, match=r"the engine's URL is .*; write `openai:http://localhost:8000/v1`|expected"):
        OpenAIEngine(url)


@pytest.mark.parametrize(
    "url", ["http://h/v1/chat/completions", "http://h/v1/models", "http://h/v1?key=1", "http://h/v1#key"]
)
def test_too_much_of_a_url(url: str) -> None:
    """Neither the addresses below the common part nor queries belong to it."""
    with pytest.raises(EngineError, match=r"give the part that all|leave out what follows"):
        OpenAIEngine(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hush@host/v1",
        "https://hush@host:8000/v1",
        "http://user:hush@host:port/v1",
        "http://user:hush@[host/v1",
        "user:hush@host",
        "http://user:hu/sh#hush@host/v1",
        "http://user:hush@host/v1?x=1",
    ],
)
def test_secrets_in_a_url(url: str) -> None:
    """Names and passwords would be kept with the results: they are refused, and the message does not repeat them."""
    with pytest.raises(EngineError, match=r"the engine's URL has an `@`.*set `OPENAI_API_KEY`") as error:
        OpenAIEngine(url)
    assert "hush" not in str(error.value)
    with pytest.raises(EngineError) as error:
        OpenAIEngine("http://host/v1?key=hush")
    assert "hush" not in str(error.value)


def test_slash_at_the_end() -> None:
    """It makes no difference."""
    with FakeServer() as server:
        OpenAIEngine(server.url + "/").load(Model("tiny", "0", None), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurency": 4}, "has no option `concurency`; did you mean `concurrency`?"),
        ({"concurrency": 0}, "`concurrency` .* is `0`; expected a whole number from 1"),
        ({"concurrency": True}, "`concurrency` .* is `true`; expected"),
        ({"retries": "-1"}, "`retries` .* is `-1`; expected"),
        ({"timeout": "0.0"}, "`timeout` .* is `0.0`; expected a positive number"),
        ({"timeout": "inf"}, "`timeout` .* is `inf`; expected a positive number"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    """Unknown and ill-typed options are refused when the engine is made."""
    with pytest.raises(EngineError, match=message):
        OpenAIEngine("http://localhost/v1", options)


def test_what_a_server_does_not_tell() -> None:
    """Scores are refused with the engines that have them, and nothing is known of the server's versions."""
    engine = OpenAIEngine("http://localhost/v1")
    with pytest.raises(EngineError, match="log-probabilities of given answers; use `vllm` or `transformers`"):
        list(engine.score([("a", "b")], end=True))
    with pytest.raises(EngineError, match="has no model; `load` one first"):
        list(engine.generate([Request("a")], Sampling()))
    assert engine.versions() == {}
    assert not engine.scores


def test_options_do_not_count() -> None:
    """Results of another `concurrency`, `retries` or `timeout` are the same results."""
    assert OpenAIEngine("http://localhost/v1", {"concurrency": 4, "retries": 0, "timeout": "1.5"}).identity == {}


def test_no_requests() -> None:
    """Nothing is sent for nothing."""
    with FakeServer() as server:
        assert list(loaded(server).generate([], Sampling())) == []
    assert len(server.requests) == 1
