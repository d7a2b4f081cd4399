"""Any HTTP service without code: a template says how its requests are written and where things stand in its answers.

The template is a table (a TOML file, or `api_options` of a plan):

    path = "/generate"
    request = '{"question": {{ prompt | json }}, "limit": {{ max_tokens }}, "live": {{ stream | json }}}'
    [answer]                       # an answer in one piece
    text = "answer.text"
    output_tokens = "answer.tokens"
    [stream]                       # an answer in pieces; without it nothing is streamed
    framing = "sse"
    text = "delta"
    done = "[DONE]"

The request is a Jinja template. It is compiled and tried once before any load, on requests of every shape and with
text that is hard to quote, so that what it gets wrong is a UsageError and not a thousand answers of status 400. What
does not fit in an answer is a ValueError, which ends as a request of status malformed with the place in words. Paths
are those of `paths`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jinja2
import jinja2.meta
import jinja2.sandbox
import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.targets.forms import data_url, split_system
from pinchpoint.targets.paths import Path
from pinchpoint.targets.target import DONE, EMPTY, Chunk, Framing, Target, TargetSpec, Usage, count, error_text

SECRET_WORDS = ("authorization", "cookie", "key", "token", "secret", "password", "credential")
"""Parts of the names of headers whose values must not stand in a template, which is stored with the run."""
RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What an expression of a template can raise; memory and recursion are bounded by the sandbox."""
JSON_TYPE = "application/json"
EVENT_ERROR = b"error"
"""Event type under which services report errors inside of a stream, whatever the data are."""
FINISHED = "stop"
"""Finish reason where the service only says that it has finished (true)."""


class AnswerPaths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where things stand in an answer in one piece; "": nowhere.

    text: the generated text; "$" is the whole body, as it stands or as a JSON string. input_tokens, output_tokens,
    cached_tokens, reasoning_tokens: the service's counts. finish: why the answer ended, or true. error: a complaint
    inside of a good status; it is one when anything but null, false or "" stands there.
    """

    text: str = ""
    input_tokens: str = ""
    output_tokens: str = ""
    cached_tokens: str = ""
    reasoning_tokens: str = ""
    finish: str = ""
    error: str = ""


class StreamPaths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where things stand in the events of a stream. Paths as of an answer; an event may lack any of them.

    framing: sse, ndjson (one JSON object in each line), or none for a service that does not stream. done: data of the
    event that ends the stream. done_event: its type. text_event: type of the events that carry text; "": all.
    cumulative: each event repeats the text so far.
    """

    framing: Literal["sse", "ndjson", "none"] = "sse"
    text: str = ""
    input_tokens: str = ""
    output_tokens: str = ""
    cached_tokens: str = ""
    reasoning_tokens: str = ""
    finish: str = ""
    error: str = ""
    done: str = ""
    done_event: str = ""
    text_event: str = ""
    cumulative: bool = False


class CustomTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole template.

    path: behind the base URL; may hold {{ model }}. request: Jinja template of the body. method: POST, which is the
    only one. headers: of every request, without secrets. generates: False where the answer is no generated text, such
    as an embedding: no output length is asked and [answer] needs no text.
    """

    request: str
    path: str = ""
    method: str = "POST"
    headers: dict[str, str] = {}
    generates: bool = True
    answer: AnswerPaths | None = None
    stream: StreamPaths | None = None


class _Places:
    """Compiled paths of an answer or of a stream's events."""

    def __init__(self, table: str, paths: AnswerPaths | StreamPaths) -> None:
        self.table = table
        self.text = _path(table, "text", paths.text)
        self.finish = _path(table, "finish", paths.finish)
        self.error = _path(table, "error", paths.error)
        names = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
        self.counts = {n: p for n in names if (p := _path(table, n, getattr(paths, n))) is not None}
        used = (self.text, self.finish, self.error, *self.counts.values())
        self.needs_json = any(path is not None and not path.whole for path in used)
        """Whether any path goes into the data, so that it must be JSON."""


def make(spec: TargetSpec) -> "CustomTarget":
    """The target of `spec.options`. Raises UsageError for a template that cannot be used."""
    if not spec.options:
        raise UsageError("the custom target needs a template of requests and answers: --template FILE.toml")
    try:
        template = msgspec.convert(dict(spec.options), CustomTemplate)
    except msgspec.ValidationError as error:
        raise UsageError(f"the template does not fit: {error}") from None
    return CustomTarget(template, spec)


class CustomTarget(Target):
    """See the module. Raises UsageError for what can be known before any load."""

    name = "custom"

    def __init__(self, template: CustomTemplate, spec: TargetSpec) -> None:
        if template.method != "POST":
            raise UsageError(f"the template: method is {template.method!r}; only POST carries a request's body")
        stream = template.stream if template.stream is not None and template.stream.framing != "none" else None
        self.stream = spec.stream and stream is not None
        if not self.stream and template.answer is None:
            raise UsageError("the template: [answer] is missing; it says where the text stands in an answer")
        self.generates = template.generates
        self.headers = _headers(template.headers)
        self._answer = _Places("answer", template.answer) if template.answer is not None else None
        self._stream = _Places("stream", stream) if stream is not None else None
        for places in (self._answer, self._stream):
            if template.generates and places is not None and places.text is None:
                raise UsageError(f'the template: {places.table}.text is missing; write "$" for the whole')
        self._paths = stream or StreamPaths()
        self.framing: Framing = "ndjson" if self._paths.framing == "ndjson" else "sse"
        self.needs_finish = bool(self._paths.finish or self._paths.done or self._paths.done_event)
        self._model = spec.model
        self._render = _compiled("request", template.request)
        self._is_json = all(
            JSON_TYPE in value.lower() for name, value in self.headers if name.lower() == "content-type"
        )
        self.path = _path_of(spec.path or template.path, spec.model)
        for remark, prompt in SAMPLES.items():
            self._try(remark, prompt)

    def build(self, prompt: Prompt) -> bytes:
        """Raises ValueError when the template fails on this request, which none of the trials did."""
        try:
            return self._rendered(prompt)
        except RENDER_ERRORS as error:
            raise ValueError(f"the template: request cannot be rendered: {_in_words(error)}") from None

    def reader(self) -> "Target":
        return _StreamReader(self) if self.stream else self

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """One event by itself; a whole stream is read by `reader`."""
        return _StreamReader(self).parse_event(event, data)

    def parse_answer(self, body: bytes) -> Chunk:
        places = self._answer
        if places is None:
            raise ValueError("the service answered in one piece, and the template has no [answer] for that")
        document = _decoded(body, places, "the answer")
        error = _error_at(places, document)
        if error is not None:
            return Chunk(error=error)
        for name, path in places.counts.items():
            if not path.find(document):
                raise ValueError(f"answer.{name}: {path.missing(document)}")
        if places.text is None:
            text = ""
        else:
            values = places.text.find(document)
            if not values:
                raise ValueError(f"answer.text: {places.text.missing(document)}")
            text = _text_of(places, values) if self.generates else ""
        return Chunk(
            content=bool(text),
            finish_reason=_finish_at(places, document, required=True),
            usage=_usage_at(places, document),
            text=text,
        )

    def _rendered(self, prompt: Prompt) -> bytes:
        system, rest = split_system(prompt)
        return self._render.render(
            prompt=prompt.text,
            messages=[{"role": message.role, "content": message.text} for message in prompt.messages],
            system=system,
            question=rest[-1].text if rest else "",
            max_tokens=prompt.max_output_tokens,
            input_tokens=prompt.input_tokens,
            model=self._model,
            stream=self.stream,
            images=[_image(image) for image in prompt.images],
            tools=list(prompt.tools),
            schema=prompt.schema,
            documents=list(prompt.documents),
        ).encode()

    def _try(self, remark: str, prompt: Prompt) -> None:
        try:
            body = self._rendered(prompt)
        except RENDER_ERRORS as error:
            raise UsageError(f"the template: request cannot be rendered for {remark}: {_in_words(error)}") from None
        if not self._is_json:
            return
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            text = body.decode("utf-8", "replace")
            near = text[max(0, _position(error) - 40) : _position(error) + 40]
            raise UsageError(
                f"the template: request is not JSON for {remark} ({error}), near {near!r}; write every value with the "
                "filter json, as in {{ prompt | json }}, or name another Content-Type in headers"
            ) from None


class _StreamReader(Target):
    """Reads one stream. Remembers the text so far, and whether the path of the text ever led anywhere."""

    name = CustomTarget.name
    stream = True

    def __init__(self, target: CustomTarget) -> None:
        self.path = target.path
        self.framing = target.framing
        self.needs_finish = target.needs_finish
        self.generates = target.generates
        self.headers = target.headers
        self.build = target.build
        self.parse_answer = target.parse_answer
        self._paths = target._paths
        self._places = target._stream
        self._done = self._paths.done.encode()
        self._done_event = self._paths.done_event.encode()
        self._text_event = self._paths.text_event.encode()
        self._so_far = ""
        self._found_text = False

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        places = self._places
        if places is None:
            raise ValueError("the service streams, and the template has no [stream] for that")
        if (self._done and data.strip() == self._done) or (self._done_event and event == self._done_event):
            return self._end(places, data)
        if not data.strip() and not (places.text is not None and places.text.whole):
            return EMPTY
        if event == EVENT_ERROR:
            return Chunk(error=error_text(_error_data(data)))
        document = _decoded(data, places, "a stream event")
        error = _error_at(places, document)
        if error is not None:
            return Chunk(error=error)
        text = self._new_text(places, document, event)
        finish_reason = _finish_at(places, document, required=False)
        if finish_reason is not None:
            self._check_found(places, document)
        return Chunk(
            content=bool(text),
            finish_reason=finish_reason,
            usage=_usage_at(places, document),
            text=text,
        )

    def _end(self, places: _Places, data: bytes) -> Chunk:
        """The end mark; an event that is one by its type may carry counts."""
        document: Any = None
        try:
            document = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError):
            self._check_found(places, None)
            return DONE
        self._check_found(places, document)
        finish_reason = _finish_at(places, document, required=False)
        return Chunk(done=True, finish_reason=finish_reason, usage=_usage_at(places, document))

    def _new_text(self, places: _Places, document: Any, event: bytes) -> str:
        if places.text is None or (self._text_event and event != self._text_event):
            return ""
        values = places.text.find(document)
        if not values:
            return ""
        self._found_text = True
        text = _text_of(places, values)
        if not self._paths.cumulative:
            return text
        new = text[len(self._so_far) :] if text.startswith(self._so_far) else text
        self._so_far = text
        return new

    def _check_found(self, places: _Places, document: Any) -> None:
        """A stream that ends and in which the text's path never led anywhere was read by a wrong template."""
        if places.text is not None and not self._found_text and self.generates:
            raise ValueError(f"stream.text: the answer ended, and in none of its events {places.text.text!r} was found")


def _path(table: str, name: str, text: str) -> Path | None:
    if not text:
        return None
    try:
        return Path(text)
    except ValueError as error:
        raise UsageError(f"the template: {table}.{name}: {error}") from None


def _path_of(path: str, model: str) -> str:
    if not path:
        raise UsageError('the template: path is missing; it is what stands behind the base URL, such as "/generate"')
    try:
        path = _compiled("path", path, known=frozenset({"model"})).render(model=model)
    except RENDER_ERRORS as error:
        raise UsageError(f"the template: path cannot be rendered: {_in_words(error)}") from None
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise UsageError(f'the template: path is {path!r}; it must begin with "/" and be what can stand in a URL')
    return path


def _headers(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    for name, value in given.items():
        if not name or not name.isascii() or not all(c.isalnum() or c in "-_." for c in name):
            raise UsageError(f"the template: headers: {name!r} is not the name of an HTTP header")
        if any(word in name.lower() for word in SECRET_WORDS):
            raise UsageError(
                f"the template: headers: {name} may hold a secret, which would be stored; "
                f"give it as --header '{name}: env:VARIABLE'"
            )
        if not value.isprintable() or not value.isascii():
            raise UsageError(f"the template: headers: the value of {name} must be one line of ASCII text")
    return tuple(given.items())


VARIABLES = frozenset(
    {
        "prompt",
        "messages",
        "system",
        "question",
        "max_tokens",
        "input_tokens",
        "model",
        "stream",
        "images",
        "tools",
        "schema",
        "documents",
    }
)
"""What a request's template may use.

prompt: all messages as one text. question: the last one alone. messages: list of role and content. system: its text,
or "". images: list of media_type, base64 and url (data:). schema: a JSON schema, or none.
"""


def _compiled(what: str, text: str, known: frozenset[str] = VARIABLES) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["json"] = environment.filters["tojson"] = _json
    try:
        unknown = jinja2.meta.find_undeclared_variables(environment.parse(text)) - known
        if unknown:
            raise UsageError(
                f"the template: {what} uses {', '.join(sorted(unknown))}, which does not exist; "
                f"there are {', '.join(sorted(known))}"
            )
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"the template: {what}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:  # such as a filter that does not exist
        raise UsageError(f"the template: {what}: {error}") from None


def _json(value: Any) -> str:
    """The filter: a value as JSON, with nothing escaped that need not be."""
    if isinstance(value, jinja2.Undefined):
        value._fail_with_undefined_error()
    return msgspec.json.encode(value).decode()


def _in_words(error: Exception) -> str:
    return f"{error.message}" if isinstance(error, jinja2.TemplateError) and error.message else str(error)


def _position(error: msgspec.DecodeError) -> int:
    """msgspec says "... (byte 17)" for most mistakes; the end of the text is not known then."""
    digits = "".join(c for c in str(error).rpartition("byte ")[2] if c.isdigit())
    return int(digits) if digits else 0


def _image(image: Image) -> dict[str, str]:
    return {"media_type": image.media_type, "base64": image.base64, "url": data_url(image)}


def _decoded(data: bytes, places: _Places, what: str) -> Any:
    """JSON, or the text itself where the template asks for nothing but the whole."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if not places.needs_json and places.text is not None:
            return data.decode("utf-8", "replace")
        begins = data[:60].decode("utf-8", "replace")
        raise ValueError(f"{what} is not JSON ({error}); it begins with {begins!r}") from None
    if places.text is not None and places.text.whole and not places.needs_json and not isinstance(document, str):
        return data.decode("utf-8", "replace")  # a text that happens to be JSON, such as a number
    return document


def _text_of(places: _Places, values: list[Any]) -> str:
    return "".join(_one_text(places, value) for value in values)


def _one_text(places: _Places, value: Any) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case bool() | int() | float():
            return msgspec.json.encode(value).decode()
        case list() if all(isinstance(one, str) for one in value):
            return "".join(value)
        case _:
            raise _no_text(places, value)


def _no_text(places: _Places, value: Any) -> ValueError:
    kind = "an object" if isinstance(value, dict) else "a list"
    assert places.text is not None
    return ValueError(f"{places.table}.text: at {places.text.text!r} there is {kind}, and not a text")


def _finish_at(places: _Places, document: Any, *, required: bool) -> str | None:
    if places.finish is None:
        return None
    if required and not places.finish.find(document):
        raise ValueError(f"{places.table}.finish: {places.finish.missing(document)}")
    value = places.finish.first(document)
    if value is True:
        return FINISHED
    return str(value) if value else None


def _error_at(places: _Places, document: Any) -> str | None:
    value = places.error.first(document) if places.error is not None else None
    return error_text(value) if value else None


def _error_data(data: bytes) -> Any:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return data.decode("utf-8", "replace")
    if isinstance(document, dict) and document.get("error"):
        return document["error"]
    return document


def _usage_at(places: _Places, document: Any) -> Usage | None:
    """Counts that stand there; those at several places are added up."""
    told: dict[str, int] = {}
    for name, path in places.counts.items():
        counted = [tokens for value in path.find(document) if (tokens := count(value)) is not None]
        if counted:
            told[name] = sum(counted)
    return Usage(**told) if told else None


HARD_TEXT = 'He said "no\\yes"\n\tand left, 5 < 6 & 7; naïve – 東京 {{ x }}'
"""Quotes, a backslash, line breaks, markup, letters beyond ASCII, and what looks like a template."""
SAMPLES: dict[str, Prompt] = {
    "a plain question": Prompt.of(HARD_TEXT, 16, 20),
    "an empty question": Prompt.of("", 1),
    "a conversation with a system prompt": Prompt(
        (
            Message("system", HARD_TEXT),
            Message("user", HARD_TEXT),
            Message("assistant", HARD_TEXT),
            Message("user", HARD_TEXT),
        ),
        90,
        200,
    ),
    "images, tools, a schema and documents": Prompt(
        (Message("user", HARD_TEXT),),
        90,
        0,
        images=(Image("image/png", "iVBORw0KGgo="), Image("image/png", "iVBORw0KGgo=")),
        tools=({"name": "look_up", "description": HARD_TEXT, "parameters": {"type": "object", "properties": {}}},),
        schema={"type": "object", "properties": {"name": {"type": "string"}}},
        documents=(HARD_TEXT, "second"),
    ),
}
"""Requests of every shape, on which a template is tried."""
