"""Text to tokens and back: bytes, characters, GPT-2's BPE, and a BPE trained on a corpus. Text never enters the model; tokens do.

Every tokenizer here is lossless (`decode(encode(text)) == text`) and adds nothing of its own: no token is prepended, and
special text such as `<|endoftext|>` is encoded as the characters it is made of.
"""

from interp_gpt2.tokenizers.base import ALPHABET, END_OF_TEXT, Tokenizer
from interp_gpt2.tokenizers.bpe import GPT2_D_VOCAB, BPETokenizer, GPT2Tokenizer
from interp_gpt2.tokenizers.labels import visible
from interp_gpt2.tokenizers.loading import load_tokenizer, tokenizer_for, tokenizer_named
from interp_gpt2.tokenizers.plain import ByteTokenizer, CharTokenizer

__all__ = [
    "ALPHABET", "END_OF_TEXT", "GPT2_D_VOCAB", "BPETokenizer", "ByteTokenizer", "CharTokenizer", "GPT2Tokenizer", "Tokenizer",
    "load_tokenizer", "tokenizer_for", "tokenizer_named", "visible",
]  # fmt: skip
