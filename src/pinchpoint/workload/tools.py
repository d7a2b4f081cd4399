"""Functions that an agent offers to the model: plausible names and parameters, the same in all requests of a class."""

import random
from functools import lru_cache
from typing import Any

VERBS = "get search list create update delete send read write run".split()
OBJECTS = "file document message event customer order invoice ticket page record report branch test table".split()
PARAMETERS: tuple[tuple[str, str, str], ...] = (
    ("query", "string", "Words to look for"),
    ("path", "string", "Where it is"),
    ("limit", "integer", "How many at most"),
    ("name", "string", "What it is called"),
    ("start_date", "string", "First day, as YYYY-MM-DD"),
    ("recursive", "boolean", "Whether to go into folders"),
    ("content", "string", "The text itself"),
    ("priority", "integer", "From 1 to 5"),
)
PARAMETERS_MAX = 4


@lru_cache(maxsize=8)
def functions(seed: int, class_id: int, count: int) -> tuple[dict[str, Any], ...]:
    """`count` functions with different names, each as name, description and JSON schema of its parameters."""
    rng = random.Random(f"{seed} {class_id}")
    names = [(verb, thing) for verb in VERBS for thing in OBJECTS]
    rng.shuffle(names)
    found = []
    for i in range(count):
        verb, thing = names[i % len(names)]
        suffix = f"_{i // len(names) + 1}" if i >= len(names) else ""
        chosen = rng.sample(PARAMETERS, rng.randint(1, PARAMETERS_MAX))
        found.append(
            {
                "name": f"{verb}_{thing}{suffix}",
                "description": f"{verb.capitalize()} a {thing} and return what was found or changed.",
                "parameters": {
                    "type": "object",
                    "properties": {name: {"type": kind, "description": text} for name, kind, text in chosen},
                    "required": [chosen[0][0]],
                },
            }
        )
    return tuple(found)
