"""Who counts the tokens of prompts: a tokenizer file, the service itself, or an estimate. Nothing here generates.

Services that count texts are asked a few dozen times over one short-lived connection each, a fraction of a second in
all on a local service; TOKENIZE_BUDGET_S bounds it.
"""

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.fetch import FetchError, exchange, tls_context
from pinchpoint.launch import Access
from pinchpoint.model import TargetFacts
from pinchpoint.plan import ContentKind, Plan
from pinchpoint.workload.classes import Traffic, TrafficClass
from pinchpoint.workload.tokens import Counter, TokenTable, counter_of_file, estimated, measured
from pinchpoint.workload.tools import functions

TOKENIZE_TIMEOUT_S = 5.0
TOKENIZE_BUDGET_S = 15.0
ANSWER_BYTES_MAX = 8 << 20
HTTP_OK = 200
_SAID = ("time", "year")
"""Texts of messages whose template is counted: a word each."""


class _NotCountedError(Exception):
    """The service does not count, or not in time. Its text says why."""


def token_table(plan: Plan, facts: TargetFacts, traffic: Traffic, access: Access, *, ask: bool = True) -> TokenTable:
    """ask: the service may be asked. Raises UsageError for a tokenizer file that is none, and for a service that was
    named as the one to count and does not."""
    wanted = plan.tokenizer
    kinds: list[ContentKind] = [one.content for one in traffic.classes]
    known = estimated(facts.tokens_per_word, facts.prompt_overhead_tokens)
    if wanted.source == "file" or (wanted.source == "auto" and wanted.file is not None):
        if wanted.file is None:
            raise UsageError("tokenizer.source is file; name it with tokenizer.file")
        told_by = f"the tokenizer {wanted.file}"
        found = measured(counter_of_file(wanted.file), kinds, source="file", told_by=told_by, file=wanted.file)
        added = {"overhead_tokens": known.overhead_tokens, "message_tokens": known.message_tokens}
        found = msgspec.structs.replace(found, **added)
        if not ask or access.endpoints[0].sockaddr is None:
            return found
        service = _Service(plan, facts, access)
        try:
            return service.with_template(found, service.counter(), known, traffic)
        except _NotCountedError:
            return found
    if wanted.source == "estimate" or not ask or access.endpoints[0].sockaddr is None:
        return known
    service = _Service(plan, facts, access)
    try:
        count = service.counter()
        found = measured(count, kinds, source="service", told_by="the service's /tokenize", split=service.split)
        return service.with_template(found, count, known, traffic)
    except _NotCountedError as error:
        if wanted.source == "service":
            raise UsageError(f"the service does not count tokens ({error}); give a tokenizer.json instead") from None
        return known


class _Service:
    """Asks a service to count, in the forms of vLLM, SGLang, llama.cpp and TGI."""

    def __init__(self, plan: Plan, facts: TargetFacts, access: Access) -> None:
        self._base = facts.url.rstrip("/").removesuffix("/v1")
        self._model = facts.model
        self._seed = plan.seed
        self._headers = {"Content-Type": "application/json", **dict(access.headers)}
        self._tls = tls_context(plan.ca_file) if access.endpoints[0].tls else None
        self._deadline_s = time.monotonic() + TOKENIZE_BUDGET_S
        self._form: dict[str, Any] = {}
        self._shows_tokens = True

    def counter(self) -> Counter:
        """Raises _NotCountedError when no form is understood."""
        forms: tuple[dict[str, Any], ...] = (
            {"model": self._model, "prompt": None, "add_special_tokens": False},
            {"content": None, "add_special": False},
            {"inputs": None, "add_special_tokens": False},
        )
        why = "no /tokenize"
        for form in forms:
            self._form = form
            try:
                one, two = self._count("The time"), self._count("The time and the year of the word")
            except _NotCountedError as error:
                why = str(error)
                continue
            if 0 < one < two:
                return self._count
        raise _NotCountedError(why)

    def _count(self, text: str, *, special: bool = False) -> int:
        """special: with what a model gets before and behind every text."""
        asked = {key: text if value is None else value or special for key, value in self._form.items()}
        return _tokens_in(self._post("/tokenize", asked))

    def split(self, text: str) -> list[int] | None:
        """Where each token of an ASCII text ends, for services that show their tokens."""
        if self._shows_tokens:
            asked = {key: text if value is None else value for key, value in self._form.items()}
            shown = next((flag for key, flag in SHOW_TOKENS.items() if key in self._form), {})
            try:
                ends = _ends_in(self._post("/tokenize", asked | shown), text)
            except _NotCountedError:
                ends = None
            self._shows_tokens = ends is not None
            return ends
        return None

    def with_template(self, table: TokenTable, count: Counter, known: TokenTable, traffic: Traffic) -> TokenTable:
        """What the chat template adds, where the service shows it; else what the probe found."""
        word = count(_SAID[0])
        plain = self._count(_SAID[0], special=True) - word
        table = msgspec.structs.replace(table, plain_overhead_tokens=float(max(0, plain)))
        try:
            one = self._chat([("user", _SAID[0])]) - word
            three = self._chat([("user", _SAID[0]), ("assistant", _SAID[1]), ("user", _SAID[0])]) - 3 * word
            system = self._chat([("system", _SAID[1]), ("user", _SAID[0])]) - 2 * word
            tools = tuple(self._tools_tokens(i, each) for i, each in enumerate(traffic.classes))
        except _NotCountedError:
            added = {"overhead_tokens": known.overhead_tokens, "message_tokens": known.message_tokens}
            return msgspec.structs.replace(table, **added)
        return msgspec.structs.replace(
            table,
            overhead_tokens=one,
            message_tokens=max(0.0, (three - one) / 2),
            system_overhead_tokens=system,
            tools_tokens=tools if any(tools) else (),
        )

    def _tools_tokens(self, class_id: int, one: TrafficClass) -> int:
        """What the functions of a class add to a request. A model whose template has no place for them adds none."""
        if not one.tools:
            return 0
        said = [("system", _SAID[1])] if one.system_tokens else []
        said.append(("user", _SAID[0]))
        offered = functions(self._seed, class_id, one.tools)
        return max(0, self._chat(said, offered) - self._chat(said))

    def _chat(self, said: Sequence[tuple[str, str]], tools: Sequence[dict[str, Any]] = ()) -> int:
        messages = [{"role": role, "content": text} for role, text in said]
        offered = {"tools": [{"type": "function", "function": one} for one in tools]} if tools else {}
        if "prompt" in self._form:
            asked = {"model": self._model, "messages": messages, "add_generation_prompt": True, **offered}
            return _tokens_in(self._post("/tokenize", asked))
        if "content" in self._form:
            prompt = self._post("/apply-template", {"messages": messages, **offered}).get("prompt")
            if isinstance(prompt, str):
                return _tokens_in(self._post("/tokenize", {"content": prompt, "add_special": True}))
        raise _NotCountedError("no template is shown")

    def _post(self, path: str, asked: dict[str, Any]) -> Any:
        if time.monotonic() > self._deadline_s:
            raise _NotCountedError(f"it took longer than {TOKENIZE_BUDGET_S:g} s")
        try:
            answer = exchange(
                "POST",
                self._base + path,
                headers=self._headers,
                body=msgspec.json.encode(asked),
                timeout_s=TOKENIZE_TIMEOUT_S,
                max_bytes=ANSWER_BYTES_MAX,
                tls=self._tls,
            )
            if answer.status != HTTP_OK:
                raise _NotCountedError(f"{path} answered HTTP {answer.status}")
            return msgspec.json.decode(answer.body)
        except FetchError as error:
            raise _NotCountedError(f"{path} got no answer: {error.reason}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _NotCountedError(f"{path} answered something that is no JSON") from None


def _ends_in(answer: Any, text: str) -> list[int] | None:
    """Where the tokens of an ASCII text end, told by their texts or by their places; None where they are not the text
    again."""
    tokens = answer.get("token_strs") or answer.get("tokens") if isinstance(answer, dict) else answer
    if not isinstance(tokens, list) or not tokens:
        return None
    shown: list[Any] = [token.get("piece", token.get("text")) if isinstance(token, dict) else token for token in tokens]
    if all(isinstance(token, str) for token in shown):
        for mark, meaning in TOKEN_MARKS.items():
            shown = [token.replace(mark, meaning) for token in shown]
        if "".join(shown) == text:
            return list(accumulate(map(len, shown)))
    stops = [stop for token in tokens if isinstance(token, dict) and isinstance(stop := token.get("stop"), int)]
    if len(stops) == len(tokens) and stops == sorted(stops) and stops[-1] == len(text):
        return stops
    return None


SHOW_TOKENS: dict[str, dict[str, Any]] = {"prompt": {"return_token_strs": True}, "content": {"with_pieces": True}}
"""What makes a service show its tokens, by the key of the text in its form: vLLM's and llama.cpp's. TGI always does."""
TOKEN_MARKS = {"\u0120": " ", "\u010a": "\n", "\u2581": " ", "<0x0A>": "\n"}
"""Spaces and line ends as byte-level BPE and SentencePiece write them."""


def _tokens_in(answer: Any) -> int:
    """Of any of the forms: a count, a list of tokens, or the list alone."""
    if isinstance(answer, dict):
        told = answer.get("count")
        tokens = answer.get("tokens")
        if isinstance(told, int):
            return told
        answer = tokens
    if isinstance(answer, list):
        return len(answer)
    raise _NotCountedError("/tokenize answered no tokens")
