"""Event streams made by hand, and what a client has to make of each. Nothing here is computed by code under test.

A body that cannot be read as promised is `malformed`; one that ends before the answer does is `truncated`. Whatever was
wrong, the pieces of text that did arrive count.
"""

import gzip
import json
from dataclasses import dataclass

EVENT_STREAM = "text/event-stream"
MEGABYTE = 1 << 20
MAX_EVENT_BYTES = 8 << 20
"""What the client promises to read as one event."""


@dataclass(frozen=True)
class Handmade:
    """usage: (input tokens, output tokens), None where the stream does not tell or does not make sense."""

    name: str
    body: bytes
    status: str
    text_events: int
    finish_reason: str | None = None
    usage: tuple[int | None, int | None] | None = None
    error: str = ""
    """Part of the error's text."""
    content_type: str = EVENT_STREAM
    extra_head: bytes = b""
    splittable: bool = True
    """False: too large to be cut in all ways."""


def line(payload: object, end: bytes = b"\n") -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode() + end


def chat(end: bytes = b"\n", finish: str | None = None, **delta: object) -> bytes:
    """One chat chunk, whole event."""
    return line({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, end) + end


def usage_event(usage: object) -> bytes:
    return line({"choices": [], "usage": usage}) + b"\n"


A, B = chat(content="a"), chat(content="b")
STOP = chat(finish="stop")
DONE = b"data: [DONE]\n\n"
USAGE = usage_event({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
HUGE = 10**30


def _raw(content: bytes) -> bytes:
    """A chat chunk whose content is these very bytes."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + content + b'"},"finish_reason":null}]}\n\n'


GRAMMAR = [
    Handmade("LF", A + B + STOP + DONE, "ok", 2, "stop"),
    Handmade("CRLF", b"".join(chat(b"\r\n", content=c) for c in "ab") + chat(b"\r\n", "stop") + DONE, "ok", 2, "stop"),
    Handmade("CR", b"".join(chat(b"\r", content=c) for c in "ab") + chat(b"\r", "stop") + DONE, "ok", 2, "stop"),
    Handmade("mixed line ends", chat(b"\r\n", content="a") + chat(b"\r", content="b") + STOP + DONE, "ok", 2, "stop"),
    Handmade("LF then CRLF ends an event", A[:-1] + b"\r\n" + STOP + DONE, "ok", 1, "stop"),
    Handmade("byte order mark", b"\xef\xbb\xbf" + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("comments", b": hello\n\n" + A + b":\n\n: OPENROUTER PROCESSING\n\n" + B + STOP + DONE, "ok", 2, "stop"),
    Handmade("comment inside an event", b": first\n" + A[:-1] + b": last\n\n" + STOP + DONE, "ok", 1, "stop"),
    Handmade(
        "retry and id lines", b"retry: 3000\n\nid: 1\n" + A + b"id: 2\nretry: x\n" + B + STOP + DONE, "ok", 2, "stop"
    ),
    Handmade("unknown fields", b"foo: bar\n" + A + b"data2: x\n" + STOP + DONE, "ok", 1, "stop"),
    Handmade("named events", b"event: message\n" + A + b"event: chunk\n" + STOP + DONE, "ok", 1, "stop"),
    Handmade("no space behind the colon", (A + STOP + DONE).replace(b"data: ", b"data:"), "ok", 1, "stop"),
    Handmade(
        "data over several lines",
        b'data: {"choices":[\ndata: {"index":0,\ndata:  "delta":{"content":"a"}}]}\n\n' + STOP + DONE,
        "ok",
        1,
        "stop",
    ),
    Handmade("empty data", b"data:\n\ndata: \n\ndata\n\n" + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("many blank lines", b"\n\n\n" + A + b"\n\n\n\n" + STOP + b"\r\n\r\n" + DONE, "ok", 1, "stop"),
    Handmade("a megabyte in one event", chat(content="x" * MEGABYTE) + STOP + DONE, "ok", 1, "stop", splittable=False),
    Handmade(
        "an event beyond reason",
        b"data: " + b"x" * (MAX_EVENT_BYTES + MEGABYTE),
        "malformed",
        0,
        error="8 MiB",
        splittable=False,
    ),
]

ENDS = [
    Handmade("no [DONE]", A + B + STOP + USAGE, "ok", 2, "stop", (5, 2)),
    Handmade("two [DONE]", A + STOP + DONE + DONE, "ok", 1, "stop"),
    Handmade("[DONE] without a finish reason", A + B + DONE, "ok", 2),
    Handmade("[DONE] alone", DONE, "truncated", 0),
    Handmade("[DONE] without its blank line", A + STOP + DONE[:-1], "ok", 1, "stop"),
    Handmade("[DONE] without any line end", A + STOP + DONE[:-2], "ok", 1, "stop"),
    Handmade("text behind [DONE]", A + STOP + DONE + B, "ok", 1, "stop"),
    Handmade("usage behind [DONE]", A + STOP + DONE + USAGE, "ok", 1, "stop"),
    Handmade("empty body", b"", "truncated", 0),
    Handmade("neither finish reason nor [DONE]", A + B, "truncated", 2),
    Handmade("cut off inside an event", A + B + STOP[:-20], "truncated", 2),
    Handmade("cut off inside the usage", A + STOP + USAGE[:-10], "truncated", 1, "stop"),
    Handmade("usage without its blank line", A + STOP + USAGE[:-1], "truncated", 1, "stop"),
    Handmade("only comments", b": keep-alive\n\n" * 5, "truncated", 0),
]

MEANING = [
    Handmade("role-only chunk first", chat(role="assistant", content="") + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("role-only chunk with null", chat(role="assistant", content=None) + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("usage-only chunk last", A + B + STOP + USAGE + DONE, "ok", 2, "stop", (5, 2)),
    Handmade(
        "usage in the last choice's chunk",
        A
        + line(
            {
                "choices": [{"delta": {}, "finish_reason": "length"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 1},
            }
        )
        + b"\n"
        + DONE,
        "ok",
        1,
        "length",
        (5, 1),
    ),
    Handmade(
        "usage in every chunk: the last one counts",
        b"".join(
            line({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 5, "completion_tokens": n}})
            + b"\n"
            for n in range(1, 4)
        )
        + STOP
        + DONE,
        "ok",
        3,
        "stop",
        (5, 3),
    ),
    Handmade("finish reason with the last text", A + chat(finish="stop", content="b") + DONE, "ok", 2, "stop"),
    Handmade("finish without text", chat(role="assistant") + STOP + DONE, "ok", 0, "stop"),
    Handmade(
        "finish reason null", A + line({"choices": [{"delta": {}, "finish_reason": None}]}) + b"\n", "truncated", 1
    ),
    Handmade("choices null", line({"choices": None}) + b"\n" + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("delta null", line({"choices": [{"delta": None}]}) + b"\n" + A + STOP + DONE, "ok", 1, "stop"),
    Handmade("empty object", b"data: {}\n\n" + A + STOP + DONE, "ok", 1, "stop"),
    Handmade(
        "content filter results alone",
        line({"choices": [], "prompt_filter_results": []}) + b"\n" + A + STOP,
        "ok",
        1,
        "stop",
    ),
    Handmade(
        "two choices in one event are one arrival",
        line({"choices": [{"index": i, "delta": {"content": "a"}, "finish_reason": None} for i in (0, 1)]})
        + b"\n"
        + STOP,
        "ok",
        1,
        "stop",
    ),
    Handmade(
        "two choices in turn",
        b"".join(line({"choices": [{"index": i % 2, "delta": {"content": "a"}}]}) + b"\n" for i in range(6)) + STOP,
        "ok",
        6,
        "stop",
    ),
    Handmade("reasoning_content, then content", chat(reasoning_content="hm") + A + STOP + DONE, "ok", 2, "stop"),
    Handmade("reasoning, then content", chat(content="", reasoning="hm") + A + STOP + DONE, "ok", 2, "stop"),
    Handmade(
        "content as a list of parts",
        chat(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]) + A + STOP + DONE,
        "ok",
        2,
        "stop",
    ),
    Handmade("a refusal is text", chat(refusal="I cannot") + chat(refusal=" do that") + STOP + DONE, "ok", 2, "stop"),
    Handmade(
        "an empty refusal is none", chat(content="a", refusal="") + chat(content="", refusal="") + STOP, "ok", 1, "stop"
    ),
    Handmade(
        "tool call deltas",
        chat(
            content=None,
            tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        )
        + chat(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}])
        + chat(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}])
        + chat(finish="tool_calls"),
        "ok",
        3,
        "tool_calls",
    ),
    Handmade(
        "a tool call without name or arguments", chat(tool_calls=[{"index": 0, "id": "c"}]) + A + STOP, "ok", 1, "stop"
    ),
    Handmade(
        "function call deltas, as they were before tool calls",
        chat(content=None, function_call={"name": "f", "arguments": ""})
        + chat(function_call={"arguments": "{}"})
        + chat(finish="function_call"),
        "ok",
        2,
        "function_call",
    ),
    Handmade(
        "an empty finish reason is none", chat(finish="", content="a") + chat(finish="", content="b"), "truncated", 2
    ),
    Handmade("a finish reason without end is cut", A + chat(finish="x" * 5000), "ok", 1, "x" * 64),
    Handmade("a finish reason is harmless in a terminal", A + chat(finish="\x1b[2Jstop\n"), "ok", 1, "[2Jstop"),
    Handmade("an empty finish reason, then one", chat(finish="", content="a") + STOP + DONE, "ok", 1, "stop"),
    Handmade("tool calls null", chat(content="a", tool_calls=None, function_call=None) + STOP, "ok", 1, "stop"),
    Handmade(
        "text completions",
        b"".join(line({"choices": [{"index": 0, "text": t, "finish_reason": None}]}) + b"\n" for t in ("a", "", "b"))
        + line({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        + b"\n"
        + DONE,
        "ok",
        2,
        "length",
    ),
    Handmade(
        "the whole message in the last chunk is not more text",
        A
        + line({"choices": [{"delta": {"content": ""}, "message": {"content": "a"}, "finish_reason": "stop"}]})
        + b"\n",
        "ok",
        1,
        "stop",
    ),
    Handmade("unicode escapes", _raw(b'\\u00e9\\n\\"\\\\') + _raw(b"\\u0000") + STOP, "ok", 2, "stop"),
    Handmade("a surrogate pair", _raw(b"\\ud83d\\ude00") + STOP, "ok", 1, "stop"),
    Handmade("UTF-8 beyond ASCII", _raw("é中😀".encode()) + _raw("\u2028\u0085".encode()) + STOP, "ok", 2, "stop"),
    Handmade("braces and event-like text", _raw(b"data: {}[DONE]") + _raw(b"}]}") + STOP + DONE, "ok", 2, "stop"),
    Handmade("text that reads like an end", _raw(b"[DONE]") + _raw(b"finish_reason:stop") + DONE, "ok", 2),
    Handmade(
        "logprobs that hold the text again",
        line({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": -0.1}]}}]})
        + b"\n"
        + STOP,
        "ok",
        1,
        "stop",
    ),
]

USAGES = [
    Handmade("usage null", A + STOP + line({"choices": [], "usage": None}) + b"\n" + DONE, "ok", 1, "stop"),
    Handmade(
        "usage with nulls", A + STOP + usage_event({"prompt_tokens": None, "completion_tokens": None}), "ok", 1, "stop"
    ),
    Handmade(
        "details with nulls",
        A
        + STOP
        + usage_event(
            {
                "prompt_tokens": 5,
                "completion_tokens": 1,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": None},
            }
        ),
        "ok",
        1,
        "stop",
        (5, 1),
    ),
    Handmade("usage without input", A + STOP + usage_event({"completion_tokens": 1}), "ok", 1, "stop", (None, 1)),
    Handmade(
        "output tokens below zero",
        A + STOP + usage_event({"prompt_tokens": 5, "completion_tokens": -1}),
        "ok",
        1,
        "stop",
    ),
    Handmade(
        "input tokens below zero",
        A + STOP + usage_event({"prompt_tokens": -5, "completion_tokens": 1}),
        "ok",
        1,
        "stop",
        (None, 1),
    ),
    Handmade("more output tokens than can be", A + STOP + usage_event({"completion_tokens": HUGE}), "ok", 1, "stop"),
    Handmade(
        "more input tokens than can be",
        A + STOP + usage_event({"prompt_tokens": 1 << 31, "completion_tokens": 1}),
        "ok",
        1,
        "stop",
        (None, 1),
    ),
    Handmade(
        "tokens as a whole decimal",
        A + STOP + usage_event({"prompt_tokens": 5.0, "completion_tokens": 2.0}),
        "ok",
        1,
        "stop",
        (5, 2),
    ),
    Handmade("tokens as a fraction", A + STOP + usage_event({"completion_tokens": 2.5}), "ok", 1, "stop"),
    Handmade("tokens as a text", A + STOP + usage_event({"completion_tokens": "2"}), "ok", 1, "stop"),
    Handmade("tokens as a truth value", A + STOP + usage_event({"completion_tokens": True}), "ok", 1, "stop"),
    Handmade(
        "usage where one gateway puts it",
        A
        + line(
            {
                "choices": [{"delta": {}, "finish_reason": "stop"}],
                "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 1}},
            }
        )
        + b"\n"
        + DONE,
        "ok",
        1,
        "stop",
        (5, 1),
    ),
]

BROKEN = [
    Handmade(
        "an error object",
        A + line({"error": {"message": "out of memory", "code": 500}}) + b"\n",
        "stream_error",
        1,
        error="out of memory",
    ),
    Handmade("an error text", A + line({"error": "overloaded"}) + b"\n" + DONE, "stream_error", 1, error="overloaded"),
    Handmade(
        "an error event",
        A + b'event: error\ndata: {"message":"engine died"}\n\n',
        "stream_error",
        1,
        error="engine died",
    ),
    Handmade("an error event without JSON", A + b"event: error\ndata: boom\n\n", "stream_error", 1, error="boom"),
    Handmade(
        "an error before any text", line({"error": {"message": "no"}}) + b"\n" + DONE, "stream_error", 0, error="no"
    ),
    Handmade(
        "an error, then a finish",
        A + line({"error": {"message": "no"}}) + b"\n" + STOP + DONE,
        "stream_error",
        1,
        "stop",
        error="no",
    ),
    Handmade(
        "error null is none",
        line({"error": None, "choices": [{"delta": {"content": "a"}}]}) + b"\n" + STOP,
        "ok",
        1,
        "stop",
    ),
    Handmade(
        "an error with control characters", line({"error": "\x1b[2Jgone"}) + b"\n", "stream_error", 0, error="gone"
    ),
    *(
        Handmade(f"error {nothing!r} is none", line({"error": nothing}) + b"\n" + A + STOP + DONE, "ok", 1, "stop")
        for nothing in ("", {}, False)
    ),
    Handmade(
        "an error as a field of the event stream",
        A + b'error: {"code":500,"message":"slot lost"}\n\n' + DONE,
        "stream_error",
        1,
        error="slot lost",
    ),
    Handmade(
        "an object that says it is an error",
        A + line({"object": "error", "message": "prompt too long", "code": 400}) + b"\n" + DONE,
        "stream_error",
        1,
        error="prompt too long",
    ),
    *(
        Handmade(f"finish reason {reason}", A + chat(finish=reason) + DONE, "stream_error", 1, reason, error=reason)
        for reason in ("error", "abort")
    ),
    Handmade(
        "nested beyond reason",
        A + b'data: {"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n" + STOP,
        "malformed",
        1,
        "stop",
        splittable=False,
    ),
    Handmade("bytes that are not UTF-8", A + _raw(b"\xff\xfe") + STOP + DONE, "malformed", 1, "stop"),
    Handmade(
        "half a UTF-8 sequence in each of two events",
        A + _raw(b"\xe4\xb8") + _raw(b"\xad") + STOP,
        "malformed",
        1,
        "stop",
    ),
    Handmade("UTF-8 of a surrogate", A + _raw(b"\xed\xa0\x80") + STOP + DONE, "malformed", 1, "stop"),
    Handmade("half a surrogate pair", A + _raw(b"\\ud83d") + _raw(b"\\ude00") + STOP, "malformed", 1, "stop"),
    Handmade("a raw control character", A + _raw(b"\x01") + STOP + DONE, "malformed", 1, "stop"),
    Handmade("an escape that is none", A + _raw(b"\\x41") + STOP + DONE, "malformed", 1, "stop"),
    Handmade(
        "NaN", A + b'data: {"choices":[{"delta":{"content":"b"},"logprobs":NaN}]}\n\n' + STOP, "malformed", 1, "stop"
    ),
    Handmade(
        "Infinity",
        A + b'data: {"choices":[],"usage":{"completion_tokens":Infinity}}\n\n' + STOP,
        "malformed",
        1,
        "stop",
    ),
    Handmade("half a JSON object", A + b'data: {"choices":[{"delta":\n\n' + STOP, "malformed", 1, "stop"),
    Handmade("a JSON array", A + b"data: [1,2]\n\n" + STOP, "malformed", 1, "stop"),
    Handmade("a JSON text", A + b'data: "hello"\n\n' + STOP, "malformed", 1, "stop"),
    Handmade("words", A + b"data: hello\n\n" + STOP, "malformed", 1, "stop"),
    Handmade(
        "choices as an object", A + b'data: {"choices":{"delta":{"content":"b"}}}\n\n' + STOP, "malformed", 1, "stop"
    ),
    Handmade("Python's spelling", A + b"data: {'choices': []}\n\n" + STOP, "malformed", 1, "stop"),
    Handmade("HTML declared as a stream", b"<html><body>Bad gateway</body></html>\n", "malformed", 0),
    Handmade("JSON declared as a stream", b'{"choices":[{"message":{"content":"a"}}]}', "malformed", 0),
    Handmade("lines of JSON declared as a stream", b'{"choices":[]}\n{"choices":[]}\n', "malformed", 0),
    Handmade("compressed bytes declared as a stream", gzip.compress(A + STOP + DONE, mtime=0), "malformed", 0),
    Handmade(
        "compressed and said so",
        gzip.compress(A + STOP + DONE, mtime=0),
        "malformed",
        0,
        error="gzip",
        extra_head=b"Content-Encoding: gzip\r\n",
    ),
    Handmade("HTML", b"<html>please log in</html>", "malformed", 0, content_type="text/html"),
    Handmade("a stream declared as JSON", A + B + STOP + DONE, "ok", 2, "stop", content_type="application/json"),
    Handmade("a stream declared as text", b": hello\n\n" + A + STOP, "ok", 1, "stop", content_type="text/plain"),
    Handmade("a stream that declares nothing", b"event: x\n" + A + STOP, "ok", 1, "stop", content_type=""),
]

ALL = [*GRAMMAR, *ENDS, *MEANING, *USAGES, *BROKEN]
