"""CLIP's tokeniser: convert text to the ids that Stable Diffusion's text encoders were trained on.

Guarantees: any string has ids, and no input text becomes one of the two special tokens, so callers cannot forge the
frame of a chunk.

Text is cleaned as CLIP does: HTML entities are decoded once, white space is collapsed, and letters become lower case.
Broken encodings are not repaired (CLIP runs ftfy first, which does not change plain text). Independent of emphasis,
chunks and networks. The table beside this file is OpenAI's, see NOTICE.
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
"""Also the padding of a chunk."""
COMMA = 267

# English endings, runs of letters, single digits, runs of other visible characters (CLIP's SimpleTokenizer).
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"


def token_ids(text: str) -> list[int]:
    """Return the ids, each 0..49405, without special tokens; an empty list for white space."""
    return _tokenizer().encode(_clean(text)).ids


def _clean(text: str) -> str:
    # JSON can put half of a surrogate pair into a string, which UTF-8 cannot encode; it becomes "?".
    text = html.unescape(text).encode("utf-8", "replace").decode()
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


@functools.cache
def _tokenizer() -> Tokenizer:
    """Create the tokeniser. Threads may share it, because encoding does not modify it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    table = resources.files(__name__).joinpath("merges.txt.gz").read_bytes()
    merges = [(left, right) for left, right in map(str.split, gzip.decompress(table).decode().splitlines())]
    # CLIP numbers the 256 bytes first, ordered by the characters that represent them, then the results of merges.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + _END_OF_WORD for letter in alphabet), *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD))
    words = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    return tokenizer
