"""A Messages API endpoint on loopback that answers from a script.

Claude Code takes it for its model: a test chooses the tool calls, Claude Code makes them for real, and the endpoint
keeps every request, so the test reads what a model would have been shown.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class ToolResult:
    """One tool result as the model receives it. `text` joins its text blocks."""

    text: str
    is_error: bool
    raw: dict[str, Any]

    @classmethod
    def of(cls, block: dict[str, Any]) -> Self:
        content = block.get("content", "")
        parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
        return cls("\n".join(parts), bool(block.get("is_error")), block)


@dataclass(frozen=True)
class ToolUse:
    """A tool call that the script makes."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


Turn = ToolUse | str | Callable[[list[ToolResult]], ToolUse | str]
"""What the model says next: a tool call, closing words, or either made from the results so far."""


class ScriptedModel:
    """Serves `script` for the length of a `with` block. `requests` holds each body that offered the model tools."""

    def __init__(self, script: list[Turn]) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.reached = threading.Event()
        """Set when the script has been played to its last turn."""

    def __enter__(self) -> Self:
        model = self

        class Handler(_Handler):
            pass

        Handler.model = model
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="scripted model")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def results(self) -> list[ToolResult]:
        """Every tool result of the conversation so far, in order."""
        return results_in(self.requests[-1]) if self.requests else []

    @property
    def tools(self) -> dict[str, dict[str, Any]]:
        """The tools that the model was offered last, by name."""
        return {tool["name"]: tool for tool in self.requests[-1]["tools"]}

    def answer(self, request: dict[str, Any]) -> ToolUse | str:
        """The turn that follows the conversation in `request`, found by the number of assistant turns in it."""
        if not request.get("tools"):
            return "A title"  # side requests: titles, summaries
        self.requests.append(request)
        place = sum(message["role"] == "assistant" for message in request["messages"])
        turn = self.script[place] if place < len(self.script) else "The script has ended."
        if place >= len(self.script) - 1:
            self.reached.set()
        return turn if isinstance(turn, ToolUse | str) else turn(results_in(request))


def results_in(request: dict[str, Any]) -> list[ToolResult]:
    """The tool results in a request's messages."""
    contents = [message["content"] for message in request["messages"] if isinstance(message["content"], list)]
    return [ToolResult.of(block) for content in contents for block in content if block["type"] == "tool_result"]


class _Handler(BaseHTTPRequestHandler):
    model: ScriptedModel
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet: the tests say what went wrong."""

    def do_HEAD(self) -> None:
        self._send(200, "text/plain", b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.startswith("/v1/messages"):
            self._send(404, "application/json", b'{"type": "error", "error": {"type": "not_found_error"}}')
        elif "count_tokens" in self.path:
            self._send(200, "application/json", json.dumps({"input_tokens": len(json.dumps(body)) // 4}).encode())
        elif body.get("stream"):
            self._send(200, "text/event-stream", b"".join(_events(body["model"], self.model.answer(body))))
        else:
            message = _message(body["model"], self.model.answer(body))
            self._send(200, "application/json", json.dumps(message).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_count = 0


def _block(turn: ToolUse | str) -> dict[str, Any]:
    global _count
    _count += 1
    if isinstance(turn, str):
        return {"type": "text", "text": turn}
    return {"type": "tool_use", "id": f"toolu_{_count:024d}", "name": turn.name, "input": turn.arguments}


def _message(name: str, turn: ToolUse | str) -> dict[str, Any]:
    block = _block(turn)
    return {
        "id": f"msg_{_count:024d}",
        "type": "message",
        "role": "assistant",
        "model": name,
        "content": [block],
        "stop_reason": "tool_use" if block["type"] == "tool_use" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 10},
    }


def _events(name: str, turn: ToolUse | str) -> Iterator[bytes]:
    message = _message(name, turn)
    block = message["content"][0]
    if block["type"] == "text":
        empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        empty, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    for event in (
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 10}},
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
