"""Speculative decoding: how many of a draft's tokens the model accepts.

Each token is accepted with the same probability until the first refusal (Leviathan et al. 2023), so a verified step of
k draft tokens yields 1 + a + a^2 + ... + a^k tokens in the mean. Not here: what drafting and verifying cost (cost.py).
"""

import math
import random


def accepted_tokens(drawn: random.Random, draft_tokens: int, acceptance_ratio: float) -> int:
    """Of a draft of so many tokens; a geometric draw from one uniform number."""
    if acceptance_ratio <= 0:
        return 0
    if acceptance_ratio >= 1:
        return draft_tokens
    # 1 - random() is in (0, 1], so its logarithm exists.
    return min(draft_tokens, int(math.log(1.0 - drawn.random()) / math.log(acceptance_ratio)))
