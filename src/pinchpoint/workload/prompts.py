"""Prompt text of a wanted length in tokens.

Without the service's tokenizer the length is an estimate: common short English words are one token in most
vocabularies, and the probe measures tokens per word and the template's overhead on the service itself. What the
service then reports is recorded and compared (`usage`).

Every prompt begins differently, so that a prefix cache cannot answer for the model: the first words are drawn from the
whole vocabulary by seed and request.
"""

import numpy as np

VOCABULARY = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work number night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father power
    hour game line end member law car city name president team minute idea body back parent face level office door
    health person art war history party result change morning reason research girl guy moment air teacher force order
    green blue red white black small large long short high low early late young old good new first last great little
    own other big different important few public bad same able make know take see come think look want give use find
    tell ask seem feel try leave call keep let begin help show hear play run move live believe bring happen write sit
    stand lose pay meet include continue set learn lead understand watch follow stop create speak read allow add spend
    grow open walk win offer remember love consider appear buy wait serve die send expect build stay fall cut reach
    """.split()
)


class PromptWriter:
    """Writes prompts. tokens_per_word and overhead_tokens come from the probe or from answers already received."""

    def __init__(self, seed: int, tokens_per_word: float | None, overhead_tokens: float | None) -> None:
        self._seed = seed
        self.tokens_per_word = tokens_per_word or 1.0
        self.overhead_tokens = overhead_tokens or 0.0

    def words_for(self, input_tokens: int) -> int:
        return max(1, round((input_tokens - self.overhead_tokens) / self.tokens_per_word))

    def write(self, request_id: int, input_tokens: int) -> str:
        rng = np.random.default_rng((self._seed, request_id))
        picks = rng.integers(0, len(VOCABULARY), self.words_for(input_tokens)).tolist()
        return " ".join([VOCABULARY[pick] for pick in picks])
