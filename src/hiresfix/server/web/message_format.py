"""Filling messages: placeholders, Korean particles, and the two marks that a message may carry.

A message is English text with placeholders as `str.format` has them: "Costs {credits} credits." A Korean translation
may ask for the particle that suits what is filled in, "{label:을/를} 불러와요": the first form follows a final
consonant, the second a vowel. Knows no catalog and no page; `static/js/text.js` keeps the same rules in the browser.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

_SYLLABLES = range(0xAC00, 0xD7A4)  # 가 to 힣, each block of 28 by its final consonant
_FINAL_RIEUL = 8
_FINAL_RIEUL_SOUNDS = frozenset("178lL")
_CONSONANT_DIGITS = frozenset("013678")  # 영 일 삼 육 칠 팔; and 십, 백, 천, 만 behind a zero
_CONSONANT_LETTER_NAMES = frozenset("LMNR")  # 엘 엠 엔 알
_CONSONANT_ENDINGS = frozenset("bcgklmnp")  # 웹, 훅, 줌: as loan words are read
_SILENT = re.compile(r"(?<=[lmn])e$")  # 스케일, 네임, 라인
_READ_AS_WORDS = frozenset({"JPEG"})  # 제이펙
_MARKS = re.compile(r"`([^`]+)`|\[([^\]]+)\]\(([^)\s]+)\)")


def mark(message: str) -> str:
    """The message itself; by this name the extraction finds texts that are translated elsewhere."""
    return message


def fill(message: str, values: Mapping[str, Any]) -> str:
    """The message with `{name}` replaced; raises KeyError for a placeholder without a value."""
    return _Filler().vformat(message, (), values) if "{" in message else message


def placeholders(message: str) -> set[str]:
    """The names that `fill` wants values for."""
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


class _Filler(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if "/" not in format_spec:
            return super().format_field(value, format_spec)
        after_consonant, _, after_vowel = format_spec.partition("/")
        return f"{value}{particle(str(value), after_consonant, after_vowel)}"


def particle(word: str, after_consonant: str, after_vowel: str) -> str:
    """Which of two particles follows the word, by how its end is read in Korean; 로 follows ㄹ as it does a vowel.

    Latin words are read as loan words, capitals by their letters' names, digits one by one. That is a rule of thumb:
    a word that is read otherwise belongs into a message as a whole, with its particle.
    """
    end = re.sub(r"[^\w%]+$", "", word)
    consonant, rieul = _final(end)
    if rieul and after_vowel.startswith("로"):
        return after_vowel
    return after_consonant if consonant else after_vowel


def _final(word: str) -> tuple[bool, bool]:
    """Whether the word ends in a consonant, and whether that is ㄹ."""
    last = word[-1:]
    if last and ord(last) in _SYLLABLES:
        final = (ord(last) - _SYLLABLES.start) % 28
        return final > 0, final == _FINAL_RIEUL
    if last.isdecimal():
        return last in _CONSONANT_DIGITS, last in _FINAL_RIEUL_SOUNDS
    tail = re.split(r"[\W\d_]+", word)[-1]
    if tail.isupper() and tail not in _READ_AS_WORDS:
        return last in _CONSONANT_LETTER_NAMES, last in "LR"
    sound = (_SILENT.sub("", tail.lower()) or " ")[-1]
    return sound in _CONSONANT_ENDINGS, sound == "l"


def rich(text: str) -> Markup:
    """Escaped HTML in which `code` and [text](address) mean what they do in Markdown."""

    def element(found: re.Match[str]) -> str:
        code, label, address = found.groups()
        return f"<code>{code}</code>" if code else f'<a href="{address}">{label}</a>'

    # Escaped text holds neither quotes nor angle brackets, so nothing can break out of what is put around it.
    return Markup(_MARKS.sub(element, str(escape(text))))  # noqa: S704
