"""What the engine works on: a request as it is handed over, the sequence it becomes, and one step."""

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items

import msgspec

from pinchpoint.lab.work import StepCost, StepWork


class EngineRequest(msgspec.Struct, gc=False):
    """One request for the engine. arrival_s: when the API process first saw it; engine metrics count from there.

    block_keys: identity of each full KV block of prompt and planned output, in order. Equal keys mean equal text up to
    and including that block. Empty: it shares nothing with other requests. priority: lowest first, where the engine
    schedules by priority. adapter, schema: which LoRA adapter it needs, which grammar holds it; None: none.
    image_tokens: of the prompt's tokens, those that the vision encoder makes; they come first. fetch_kv: the prompt's
    KV comes from another engine; called with the instant at which the blocks for it are there, returns when it has
    arrived, both in seconds.
    """

    request_id: int
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float
    finish_reason: str = "length"
    block_keys: Items[Hashable] = ()
    priority: int = 0
    adapter: int | None = None
    schema: int | None = None
    image_tokens: int = 0
    fetch_kv: Callable[[float], float] | None = None


class Sequence:
    """One request inside the engine. `known_tokens` (prompt plus output so far) is what must be computed before the
    next token; `computed_tokens` of them have their KV in blocks."""

    __slots__ = (
        "aborted",
        "arrival_s",
        "blocks",
        "cached_tokens",
        "capacity_tokens",
        "computed_tokens",
        "external_tokens",
        "failed",
        "fetched",
        "finish_reason",
        "finished",
        "first_token_s",
        "held_keys",
        "highest_computed_tokens",
        "keys",
        "keys_seen",
        "last_token_s",
        "max_output_tokens",
        "new_tokens",
        "output_tokens",
        "place",
        "preemptions",
        "prompt_tokens",
        "queued_s",
        "request",
        "request_id",
        "scheduled_s",
        "scheduled_tokens",
    )

    def __init__(self, request: EngineRequest, queued_s: float, place: int) -> None:
        self.request = request
        self.request_id = request.request_id
        self.prompt_tokens = request.prompt_tokens
        self.max_output_tokens = request.max_output_tokens
        self.arrival_s = request.arrival_s
        self.finish_reason = request.finish_reason
        self.queued_s = queued_s
        self.place = place
        """In the waiting line, smallest first."""
        self.output_tokens = 0
        self.new_tokens = 1
        """Of the latest step that gave it tokens; above 1 only with speculation, 0 when it has failed."""
        self.computed_tokens = 0
        self.highest_computed_tokens = 0
        """Before it was last evicted; what lies below is computed again."""
        self.cached_tokens = 0
        """Of the prompt, found in the prefix cache when it was first admitted."""
        self.external_tokens = 0
        """Of the prompt, with KV from another engine."""
        self.fetched = False
        self.blocks = 0
        self.capacity_tokens = 0
        self.keys = request.block_keys
        self.keys_seen = 0
        """So many of its first blocks are in the prefix cache, or were found there already."""
        self.held_keys: list[Hashable] = []
        """Of its blocks, those known to the prefix cache, in order; the others are its own alone."""
        self.preemptions = 0
        self.scheduled_s: float | None = None
        self.scheduled_tokens = 0
        """In the step under way."""
        self.first_token_s = 0.0
        self.last_token_s = 0.0
        self.aborted = False
        self.finished = False
        """It got its last token, or has failed."""
        self.failed = False
        """The engine has given it up; finish_reason is then "error"."""

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def fail(self) -> None:
        """The engine gives it up."""
        self.failed = self.finished = True
        self.finish_reason = "error"
        self.new_tokens = 0


class Step(msgspec.Struct, gc=False):
    """What a step that has started will do. duration_s includes noise and waits for the CPU; cost does not."""

    started_s: float
    duration_s: float
    sequences: int
    tokens: int
    preempted: int
    work: StepWork
    cost: StepCost
