"""A vocabulary for the tests of models that need no corpus."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers


@dataclass
class Words:
    """The vocabulary of a corpus of that size."""

    vocab_size: int = 300
    end_of_text: int = 0

    def tokenizer(self) -> tokenizers.Tokenizer:
        words = {f"w{i}": i for i in range(self.vocab_size)}
        return tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
