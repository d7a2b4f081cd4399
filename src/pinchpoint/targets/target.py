"""What every target is: it makes the bytes of a request and reads the meaning of an answer. No sockets, no clocks."""

from typing import Any, Literal, Protocol

import msgspec

from pinchpoint.prompt import Prompt

TOKENS_MAX = 2**31 - 1
"""No answer has more. Records hold 32-bit counts, and a count that cannot be is one that is not known."""
ERROR_TEXT_CHARS = 300


class Usage(msgspec.Struct, frozen=True):
    """Counts that the service tells. None: it does not tell."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Chunk(msgspec.Struct, frozen=True):
    """Meaning of one stream event or of one whole answer. All false or None: an event without content (a role, a
    keep-alive).

    content, reasoning, tool: it carries a piece of the answer, of the thinking before it, of a call. text: the piece
    of the answer itself (content only), for the history of a conversation; "" where the target does not tell. Of
    several usages in one answer the later one counts, field by field.
    """

    content: bool = False
    reasoning: bool = False
    tool: bool = False
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    done: bool = False
    text: str = ""

    @property
    def has_text(self) -> bool:
        return self.content or self.reasoning or self.tool


EMPTY = Chunk()
DONE = Chunk(done=True)

Framing = Literal["sse", "ndjson"]
Transport = Literal["http", "grpc"]


class TargetSpec(msgspec.Struct, frozen=True):
    """Which target to make; travels to the load processes. path: None is the API's own. usage: ask for token counts in
    streams, where the API has such an option. options: of the target, as in Plan.api_options."""

    api: str
    model: str
    engine: str = "unknown"
    stream: bool = True
    usage: bool = True
    path: str | None = None
    options: dict[str, Any] = {}


class Target(Protocol):
    """One API of one model. What has a default here need not be written by those who subclass it.

    path: behind the base URL, for HTTP; for gRPC the full method. framing: of streamed answers, where their content
    type does not say it. needs_finish: a stream without a finish reason or an end mark was cut off; False for APIs
    whose streams simply end. headers: of this API, beside those that every request has. generates: False where the
    answer is no generated text (embeddings, ranking, prediction), so that no output length is asked or expected.
    key_header: a further header that takes the API key, as it is; "": only Authorization does.
    """

    name: str
    path: str
    stream: bool
    transport: Transport = "http"
    framing: Framing = "sse"
    needs_finish: bool = True
    generates: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    key_header: str = ""

    def build(self, prompt: Prompt) -> bytes:
        """The body of a request (for gRPC: the serialised message). Raises ValueError when it cannot be written, and
        that request is then dropped."""
        ...

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """One event of a stream: its type (empty for NDJSON and gRPC) and data. Raises ValueError when the data is not
        what the API promises."""
        ...

    def parse_answer(self, body: bytes) -> Chunk:
        """A whole, non-streamed answer, or the body of an error. Raises ValueError as above."""
        ...

    def reader(self) -> "Target":
        """What reads one answer, and only one: the target itself, unless an event gets its meaning from those before
        it, as where each repeats the text so far."""
        return self

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        """What stands before and behind the text in an event's bytes, line end included, see targets.template; None:
        such events are decoded one by one."""
        return None


def count(tokens: object) -> int | None:
    """A number of tokens; some services write it as 5.0. None for whatever cannot be one."""
    if isinstance(tokens, float) and tokens.is_integer():
        tokens = int(tokens)
    return tokens if type(tokens) is int and 0 <= tokens <= TOKENS_MAX else None


def error_text(error: object) -> str:
    """The complaint inside an error object, cut to a length that fits a record."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:ERROR_TEXT_CHARS]
