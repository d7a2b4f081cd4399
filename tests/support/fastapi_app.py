"""A service as people write them with FastAPI: its own JSON in and out, endpoints of every kind. Started as a process.

    python -m tests.support.fastapi_app        prints its port, serves until stdin closes

What it answers is short and known: the words of `STORY`, one every TOKEN_S, as many as were asked for.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

STORY = "The river bends past the old mill and carries slow boats to the sea".split()
TOKEN_S = 0.002
EMBEDDING = [0.25, -0.5, 1.0]

app = FastAPI()


class Turn(BaseModel):
    who: str
    said: str


class Question(BaseModel):
    question: str
    history: list[Turn] = []
    limit: int
    stream: bool = False


class Saying(BaseModel):
    text: str
    words: int


class Lines(BaseModel):
    prompt: str
    max: int


class Texts(BaseModel):
    texts: list[str]


def words(count: int) -> list[str]:
    return [STORY[index % len(STORY)] for index in range(count)]


def asked_tokens(question: Question) -> int:
    return sum(len(text.split()) for text in (question.question, *(turn.said for turn in question.history)))


@app.post("/ask", response_model=None)
async def ask(question: Question) -> Any:
    """Asynchronous; an answer of JSON, or a stream of events."""
    if question.stream:
        return StreamingResponse(_events(question), media_type="text/event-stream")
    await asyncio.sleep(TOKEN_S * question.limit)
    answer = {"text": " ".join(words(question.limit)), "tokens": question.limit}
    return {"answer": answer, "asked_tokens": asked_tokens(question), "why": "length"}


async def _events(question: Question) -> AsyncIterator[str]:
    for index, word in enumerate(words(question.limit)):
        await asyncio.sleep(TOKEN_S)
        yield f"data: {json.dumps({'delta': f' {word}' if index else word})}\n\n"
    end = {"why": "length", "tokens": question.limit, "asked_tokens": asked_tokens(question)}
    yield f"data: {json.dumps(end)}\n\n"
    yield "data: [DONE]\n\n"


@app.post("/say")
def say(saying: Saying) -> str:
    """Synchronous, in the thread pool; the text as a JSON string."""
    time.sleep(TOKEN_S * saying.words)
    return " ".join(words(saying.words))


@app.post("/say-plainly", response_class=PlainTextResponse)
def say_plainly(saying: Saying) -> str:
    return " ".join(words(saying.words))


@app.post("/lines")
def lines(asked: Lines) -> StreamingResponse:
    """Synchronous; lines of JSON that repeat the text so far, under a content type that says nothing."""

    def stream() -> Any:
        for count in range(1, asked.max + 1):
            time.sleep(TOKEN_S)
            line: dict[str, Any] = {"so_far": " ".join(words(count))}
            if count == asked.max:
                line |= {"finished": True, "count": count}
            yield json.dumps(line) + "\n"

    return StreamingResponse(stream(), media_type="text/plain")


@app.post("/embed")
async def embed(texts: Texts) -> dict[str, Any]:
    return {"vectors": [EMBEDDING for _ in texts.texts], "tokens": sum(len(text.split()) for text in texts.texts)}


@app.post("/fail")
async def fail(_: dict[str, Any]) -> None:
    raise HTTPException(status_code=500, detail="the model is not loaded")


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))

    def stop_when_stdin_closes() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop_when_stdin_closes, daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
