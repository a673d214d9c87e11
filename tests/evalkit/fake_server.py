"""A server in this process that speaks OpenAI's protocol: lists models, and answers as a test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server sends: an answer's text and how it finished, or with another status an error's message."""

    text: str = ""
    finish: str = "stop"
    status: int = 200
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def shout(body: Body) -> Reply:
    """The prompt's text, or its last message's, in capitals."""
    prompt = body.get("prompt")
    return Reply((prompt if isinstance(prompt, str) else body["messages"][-1]["content"]).upper())


class FakeServer:
    """Use as a context manager; `url` ends with `/v1`, `requests` are (path, body, headers) in order of arrival,
    the headers' names in small letters.

    `answer` is called in the request's own thread and may block. An answer has as many tokens as words.
    """

    def __init__(
        self, models: Sequence[str] = ("tiny",), answer: Callable[[Body], Reply] = shout, listing: Reply | None = None
    ) -> None:
        self.models = models
        self.answer = answer
        self.listing = listing
        self.requests: list[tuple[str, Body, Mapping[str, str]]] = []
        self._server = _Server(self)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reply_to(self, path: str, body: Body) -> tuple[Reply, bytes]:
        """The reply and its bytes."""
        if path == "/v1/models":
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            reply = self.listing or Reply(raw=json.dumps(listed).encode())
        elif path in ("/v1/chat/completions", "/v1/completions"):
            reply = self.answer(body)
        else:
            reply = Reply("Not Found", status=404)
        return reply, reply.raw if reply.raw is not None else json.dumps(_data(path, reply, body)).encode()


def _data(path: str, reply: Reply, body: Body) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"message": reply.text, "type": "test", "code": reply.status}}
    chat = path.endswith("/chat/completions")
    content = {"message": {"role": "assistant", "content": reply.text}} if chat else {"text": reply.text}
    return {
        "id": "1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": reply.finish, **content}],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(reply.text.split()), "total_tokens": 0},
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests hang up on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def _reply(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.fake.requests.append((self.path, body, headers))
        reply, raw = self.server.fake.reply_to(self.path, body)
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the library's name
        """Say nothing."""
