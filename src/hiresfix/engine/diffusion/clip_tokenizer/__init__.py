"""CLIP's tokeniser: text -> the ids that the text encoders of Stable Diffusion were trained on.

Guarantees: any string has ids, and nothing a caller can type becomes one of the two special tokens, so the frame of
a chunk cannot be forged. Text is cleaned as CLIP does: HTML entities are read once, white space is collapsed,
letters become small. Broken encodings are not repaired (CLIP runs ftfy first, which changes no plain text). Knows
no emphasis, no chunks and no networks. The table beside this file is OpenAI's, see NOTICE.
"""

from __future__ import annotations

import functools
import gzip
import html
import unicodedata
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START = 49406
END = 49407
"""Also what a chunk is filled up with."""
COMMA = 267

# English endings, runs of letters, single digits, runs of anything else that can be seen (CLIP's SimpleTokenizer).
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"


def token_ids(text: str) -> list[int]:
    """The ids, each 0..49405, without special tokens; none for a text of white space."""
    return _tokenizer().encode(_clean(text)).ids


def _clean(text: str) -> str:
    # Half of a surrogate pair is what JSON can smuggle into a string, and what UTF-8 cannot say.
    text = html.unescape(text).encode("utf-8", "replace").decode()
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


@functools.cache
def _tokenizer() -> Tokenizer:
    """Safe to share between threads: encoding changes nothing."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    table = resources.files(__name__).joinpath("merges.txt.gz").read_bytes()
    merges = [(left, right) for left, right in map(str.split, gzip.decompress(table).decode().splitlines())]
    # CLIP numbers the 256 bytes first, in the order of the characters that stand for them, then what merges make.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + _END_OF_WORD for letter in alphabet), *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD))
    words = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    return tokenizer
