"""ShareGPT's form: a JSON list of conversations as texts. Lengths in tokens are estimated; there are no instants."""

import json
from pathlib import Path
from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.workload.traces.files import opened
from pinchpoint.workload.traces.table import LogBuilder, RequestLog
from pinchpoint.workload.traces.tabular import CHARS_PER_TOKEN

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard")


def read_conversations(path: Path) -> RequestLog:
    """A request per answer; input_tokens is the message that it answers, without what was said before. Raises
    UsageError."""
    with opened(path) as file:
        try:
            found = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, list):
        raise UsageError(f"{path} is not a JSON list of conversations")
    builder = LogBuilder("sharegpt", str(path))
    builder.notes.append(f"the file holds texts and no counts: one token for {CHARS_PER_TOKEN} characters was taken")
    for number, one in enumerate(found):
        turns = one.get("conversations") if isinstance(one, dict) else None
        if not isinstance(turns, list):
            raise UsageError(f"{path}, conversation {number + 1}: there is no list 'conversations'")
        asked: str | None = None
        for turn in turns:
            who, text = _said(turn, path, number)
            if who in ASKS:
                asked = text
            elif who in ANSWERS and asked is not None:
                if not text or not asked:
                    builder.leave_out("an empty message or answer")
                else:
                    builder.add(None, _tokens(asked), _tokens(text), str(one.get("id", number)))
                asked = None
    return builder.build()


def _said(turn: Any, path: Path, number: int) -> tuple[str, str]:
    who = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if not isinstance(who, str) or not isinstance(text, str):
        raise UsageError(f"{path}, conversation {number + 1}: a turn needs 'from' and 'value', both texts")
    return who, text


def _tokens(text: str) -> int:
    return max(1, round(len(text) / CHARS_PER_TOKEN))
