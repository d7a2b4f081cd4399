"""Templates of requests and answers: what they write, what they read, and what is told about those that are wrong."""

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.load.exchange import Exchange
from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.custom import HARD_TEXT, SAMPLES, make
from pinchpoint.targets.target import Chunk, TargetSpec, Usage

EXAMPLES = Path(__file__).parents[3] / "examples" / "custom"
REQUEST = '{"q": {{ prompt | json }}, "n": {{ max_tokens }}, "live": {{ stream | json }}}'
ANSWER = {"text": "answer.text", "output_tokens": "answer.tokens", "finish": "why"}
STREAM = {"text": "delta", "output_tokens": "usage.out", "finish": "why", "done": "[DONE]"}


def target(asked_to_stream: bool = True, **template: Any) -> Any:
    options = {"path": "/ask", "request": REQUEST, "answer": ANSWER, **template}
    return make(TargetSpec("custom", "m", stream=asked_to_stream, options=options))


# -- requests ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_arrives_as_it_was(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair is no text
        return
    assert json.loads(ONE.build(Prompt.of(text, 7))) == {"q": text, "n": 7, "live": False}


ONE = target()


def test_every_variable_can_be_used() -> None:
    names = "prompt messages system question max_tokens input_tokens model stream images tools schema documents".split()
    request = "{" + ", ".join(f'"{name}": {{{{ {name} | json }}}}' for name in names) + "}"
    prompt = Prompt(
        (Message("system", "be brief"), Message("user", "one"), Message("assistant", "two"), Message("user", "three")),
        input_tokens=50,
        max_output_tokens=9,
        images=(Image("image/png", "QUJD"),),
        tools=({"name": "f", "description": "d", "parameters": {}},),
        schema={"type": "object"},
        documents=("a", "b"),
    )
    assert json.loads(target(request=request).build(prompt)) == {
        "prompt": "be brief\n\none\n\ntwo\n\nthree",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "system": "be brief",
        "question": "three",
        "max_tokens": 9,
        "input_tokens": 50,
        "model": "m",
        "stream": False,
        "images": [{"media_type": "image/png", "base64": "QUJD", "url": "data:image/png;base64,QUJD"}],
        "tools": [{"name": "f", "description": "d", "parameters": {}}],
        "schema": {"type": "object"},
        "documents": ["a", "b"],
    }


def test_a_template_may_loop_and_choose_and_its_path_may_name_the_model() -> None:
    request = (
        '{"turns": [{% for m in messages %}{{ m.content | json }}{{ "," if not loop.last }}{% endfor %}]'
        '{% if schema %}, "schema": {{ schema | json }}{% endif %}}'
    )
    made = target(request=request, path="/models/{{ model }}/ask")
    assert made.path == "/models/m/ask"
    assert json.loads(made.build(SAMPLES["a conversation with a system prompt"])) == {"turns": [HARD_TEXT] * 4}
    assert "schema" in json.loads(made.build(SAMPLES["images, tools, a schema and documents"]))


def test_a_body_that_is_no_json_needs_its_content_type() -> None:
    with pytest.raises(UsageError, match="request is not JSON for a plain question"):
        target(request="q={{ prompt | urlencode }}")
    form = target(request="q={{ prompt | urlencode }}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert form.headers == (("Content-Type", "application/x-www-form-urlencoded"),)
    assert form.build(Prompt.of("a b&c", 1)) == b"q=a%20b%26c"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a syntax error", {"request": '{\n"q": {{ prompt | json }'}, "request, line 2: "),
    (
        "an unknown variable",
        {"request": '{"q": {{ promt | json }}}'},
        "request uses promt, which does not exist",
    ),
    ("an unknown filter", {"request": '{"q": {{ prompt | jsn }}}'}, "jsn"),
    ("a missing filter", {"request": '{"q": "{{ prompt }}"}'}, "write every value with the filter json"),
    ("a missing member", {"request": '{"q": {{ messages[0].text | json }}}'}, "has no attribute 'text'"),
    ("a missing element", {"request": '{"q": {{ images[0].url | json }}}'}, "for a plain question"),
    ("an error while rendering", {"request": '{"q": {{ max_tokens / 0 }}}'}, "division by zero"),
    ("a way out of the sandbox", {"request": '{"q": {{ "".__class__.__mro__ | json }}}'}, "unsafe"),
    ("no request", {"request": 5}, "Expected `str`"),
    ("an unknown key", {"answers": {}}, "unknown field `answers`"),
    ("an unknown path", {"answer": {"txt": "a"}}, "unknown field `txt`"),
    ("an unknown framing", {"stream": {**STREAM, "framing": "xml"}}, "framing"),
    ("no path", {"path": ""}, "path is missing"),
    ("half a path", {"path": "ask"}, "begin with"),
    ("a path with an unknown variable", {"path": "/{{ prompt }}"}, "path uses prompt"),
    ("another method", {"method": "PUT"}, "only POST"),
    ("no text", {"answer": {"finish": "why"}}, "answer.text is missing"),
    ("no text in a stream", {"stream": {"done": "x"}}, "stream.text is missing"),
    ("a wrong path expression", {"answer": {"text": "a..b"}}, "answer.text: 'a..b' is no path"),
    ("no answer", {"answer": None}, "\\[answer\\] is missing"),
    ("a secret", {"headers": {"X-Api-Key": "abc"}}, "may hold a secret"),
    ("a broken header", {"headers": {"X Y": "abc"}}, "not the name of an HTTP header"),
    ("a header of two lines", {"headers": {"X-Y": "a\nb"}}, "one line"),
]


@pytest.mark.parametrize(("remark", "change", "says"), WRONG, ids=[remark for remark, _, _ in WRONG])
def test_a_wrong_template_is_told_before_any_load(remark: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        target(**change)


def test_no_template_at_all_is_told() -> None:
    with pytest.raises(UsageError, match="--template"):
        make(TargetSpec("custom", "m"))


# -- answers in one piece ------------------------------------------------------------------------------------------


def test_text_counts_and_reason_are_found() -> None:
    body = b'{"answer": {"text": "a b", "tokens": 2}, "why": "length"}'
    assert target().parse_answer(body) == Chunk(
        content=True, finish_reason="length", usage=Usage(output_tokens=2), text="a b"
    )


PLAIN = [
    (b"just text", "just text"),
    (b'"a JSON string\\n"', "a JSON string\n"),
    (b"42", "42"),
    (b'{"a": 1}', '{"a": 1}'),
    (b"", ""),
    ("naïve".encode(), "naïve"),
]


@pytest.mark.parametrize(("body", "text"), PLAIN)
def test_a_plain_text_answer_is_the_whole_body(body: bytes, text: str) -> None:
    assert target(answer={"text": "$"}).parse_answer(body).text == text


def test_several_texts_are_joined_and_several_counts_added() -> None:
    made = target(answer={"text": "parts[*].text", "output_tokens": "parts[*].n"})
    chunk = made.parse_answer(b'{"parts": [{"text": "a", "n": 1}, {"text": null, "n": 2}, {"text": "b", "n": 3}]}')
    assert (chunk.text, chunk.usage) == ("ab", Usage(output_tokens=6))


def test_an_error_in_a_good_answer_is_one() -> None:
    made = target(answer={**ANSWER, "error": "problem"})
    assert made.parse_answer(b'{"problem": {"message": "no room"}}').error == "no room"
    good = b'{"answer": {"text": "a", "tokens": 1}, "why": true, "problem": null}'
    assert made.parse_answer(good).error is None
    assert made.parse_answer(good).finish_reason == "stop"


MALFORMED = [
    (b"<html>", "the answer is not JSON"),
    (b'{"answer": {}}', "answer.output_tokens: 'answer.tokens' matches nothing"),
    (b'{"answer": {"tokens": 1}, "why": null}', "answer.text: 'answer.text' matches nothing: at $.answer there is no"),
    (b'{"answer": {"tokens": 1, "text": {}}, "why": null}', "there is an object, and not a text"),
    (b'{"answer": {"tokens": 1, "text": "a"}}', "answer.finish: 'why' matches nothing"),
    (b'[{"answer": 1}]', "at $ there is no 'answer', but a list of 1"),
]


@pytest.mark.parametrize(("body", "says"), MALFORMED)
def test_an_answer_that_does_not_fit_says_where(body: bytes, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        target().parse_answer(body)
    assert says in str(caught.value)


def test_an_embedding_needs_no_text_and_has_no_output() -> None:
    made = target(generates=False, answer={"text": "data[0].vector", "input_tokens": "n"})
    assert not made.generates
    assert made.parse_answer(b'{"data": [{"vector": [0.1, 0.2]}], "n": 5}') == Chunk(usage=Usage(input_tokens=5))
    with pytest.raises(ValueError, match="matches nothing"):
        made.parse_answer(b'{"data": [], "n": 5}')


# -- streams, through the load's own reading -----------------------------------------------------------------------


def ended(made: Any, payload: bytes, content_type: str = "text/event-stream") -> Exchange:
    """One answer, given to the exchange in pieces of seven bytes."""
    exchange = Exchange(ScheduledRequest(0, 0, 0, 0, 0, 0, 1, 1), 0, made.reader(), keep_text=True)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (payload[i : i + 7] for i in range(0, len(payload), 7)))
    exchange.take(head, 1)
    for number, start in enumerate(range(0, len(chunks), 11)):
        exchange.take(chunks[start : start + 11], number + 2)
    exchange.take(b"0\r\n\r\n", 10**6)
    return exchange


def sse(*events: str) -> bytes:
    return "".join(f"data: {event}\n\n" for event in events).encode()


def test_a_stream_of_events_is_read_to_its_mark() -> None:
    events = ['{"delta": "Hel"}', '{"delta": "lo"}', '{"delta": "", "why": "stop"}', '{"usage": {"out": 2}}', "[DONE]"]
    done = ended(target(stream=STREAM), sse(*events))
    assert (done.status, done.text, done.finish_reason, len(done.chunk_ns)) == ("ok", "Hello", "stop", 2)
    assert done.usage == Usage(output_tokens=2)


def test_a_page_of_an_error_is_told_also_where_any_text_would_be_an_answer() -> None:
    exchange = Exchange(ScheduledRequest(0, 0, 0, 0, 0, 0, 1, 1), 0, target(answer={"text": "$"}))
    exchange.take(b"HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\nno memory!", 1)
    assert (exchange.status, exchange.error) == ("http_error", "HTTP 500: no memory!")


def test_a_stream_that_was_cut_off_is_truncated() -> None:
    assert ended(target(stream=STREAM), sse('{"delta": "Hel"}')).status == "truncated"


def test_a_stream_without_any_mark_may_simply_end() -> None:
    made = target(stream={"text": "delta"})
    assert ended(made, sse('{"delta": "Hel"}')).status == "ok"
    assert ended(made, sse('{"dleta": "Hel"}')).status == "truncated"


def test_lines_of_json_that_repeat_the_text_so_far_are_told_apart() -> None:
    made = target(stream={"framing": "ndjson", "text": "all", "finish": "end", "cumulative": True})
    lines = ['{"all": ""}', '{"all": "He"}', '{"all": "He"}', '{"all": "Hello"}', '{"all": "Hello", "end": true}']
    done = ended(made, "\n".join(lines).encode() + b"\n", "text/plain")
    assert (done.status, done.text, done.finish_reason, len(done.chunk_ns)) == ("ok", "Hello", "stop", 2)


def test_two_streams_that_repeat_their_text_do_not_mix() -> None:
    made = target(stream={"text": "all", "done": "x", "cumulative": True})
    one, other = made.reader(), made.reader()
    assert one.parse_event(b"", b'{"all": "ab"}').text == "ab"
    assert other.parse_event(b"", b'{"all": "abc"}').text == "abc"
    assert one.parse_event(b"", b'{"all": "abc"}').text == "c"


def test_typed_events_with_bare_text_and_counts_at_their_end() -> None:
    stream = {"text": "$", "text_event": "token", "done_event": "end"}
    payload = (
        b"event: start\ndata: {}\n\n" + b"event: token\ndata: Hel\n\nevent: token\ndata: lo\n\nevent: end\ndata: -\n\n"
    )
    done = ended(target(stream=stream), payload)
    assert (done.status, done.text, len(done.chunk_ns)) == ("ok", "Hello", 2)
    stream = {"text": "t", "done_event": "end", "output_tokens": "n", "finish": "why"}
    payload = b'event: token\ndata: {"t": "Hel"}\n\nevent: end\ndata: {"n": 1, "why": "length"}\n\n'
    done = ended(target(stream=stream), payload)
    assert (done.status, done.finish_reason, done.usage) == ("ok", "length", Usage(output_tokens=1))


BAD_STREAMS = [
    (
        "an error event",
        b'event: error\ndata: {"error": "no room"}\n\n',
        "stream_error",
        "no room",
    ),
    ("an error by path", sse('{"delta": "a"}', '{"oops": "no room"}', "[DONE]"), "stream_error", "no room"),
    ("no JSON", sse("Hel", "[DONE]"), "malformed", "a stream event is not JSON"),
    ("another member", sse('{"dleta": "a"}', "[DONE]"), "malformed", "in none of its events 'delta' was found"),
    ("no text", sse('{"delta": {"a": 1}}', "[DONE]"), "malformed", "there is an object"),
]


@pytest.mark.parametrize(("remark", "payload", "status", "says"), BAD_STREAMS)
def test_a_stream_that_does_not_fit_says_where(remark: str, payload: bytes, status: str, says: str) -> None:
    done = ended(target(stream={**STREAM, "error": "oops"}), payload)
    assert done.status == status
    assert says in (done.error or "")


def test_an_empty_answer_is_no_wrong_template() -> None:
    assert ended(target(stream=STREAM), sse('{"delta": "", "why": "stop"}', "[DONE]")).status == "ok"


def test_a_service_that_does_not_stream_is_asked_for_nothing_else() -> None:
    for made in (target(), target(stream={"framing": "none"}), target(asked_to_stream=False, stream=STREAM)):
        assert json.loads(made.build(Prompt.of("a", 1)))["live"] is False
        assert not made.stream
        assert made.reader() is made


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_every_example_can_be_used(file: Path) -> None:
    options = tomllib.loads(file.read_text())
    for stream in (True, False) if "answer" in options else (True,):
        made = make(TargetSpec("custom", "m", stream=stream, options=options))
        assert isinstance(msgspec.json.decode(made.build(Prompt.of("hello", 4))), dict)
        assert made.stream == (stream and "stream" in options)
