"""Writes a tokenizer for peers that insist on one: bytes, with " the" as one token, and a chat template.

    python bench/make_tokenizer.py DIRECTORY

Runs in the peer's own environment; needs tokenizers and transformers, which such peers bring.
"""

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
SPECIAL = ("<unk>", "<s>", "</s>")


def main(directory: str) -> None:
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    unknown, begin, end = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(directory)
    assert len(fast.encode(" the" * 3)) == 3


if __name__ == "__main__":
    main(sys.argv[1])
