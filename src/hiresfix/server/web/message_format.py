"""Fill in messages: placeholders, Korean particles, and the two kinds of markup that a message may contain.

A message is English text with placeholders as in `str.format`: "Costs {credits} credits." A Korean translation can
choose the particle that suits the value, "{label:을/를} 사용합니다": the first form follows a final consonant, the
second a vowel. This module knows no catalog and no page; `static/js/i18n.js` implements the same rules in the browser.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

_SYLLABLES = range(0xAC00, 0xD7A4)  # 가 to 힣, in blocks of 28 final consonants
_FINAL_RIEUL = 8
_FINAL_RIEUL_SOUNDS = frozenset("178lL")
_CONSONANT_DIGITS = frozenset("013678")  # 영 일 삼 육 칠 팔; numbers that end in 0 are read 십, 백, 천, 만
_CONSONANT_LETTER_NAMES = frozenset("LMNR")  # 엘 엠 엔 알
_CONSONANT_ENDINGS = frozenset("bcgklmnp")  # 웹, 훅, 줌: as loan words are read
_SILENT = re.compile(r"(?<=[lmn])e$")  # 스케일, 네임, 라인
_READ_AS_WORDS = frozenset({"JPEG"})  # 제이펙
_MARKUP = re.compile(r"`([^`]+)`|\[([^\]]+)\]\(([^)\s]+)\)")


def mark(message: str) -> str:
    """Return the message unchanged; the call marks a text that is translated elsewhere for extraction."""
    return message


def fill(message: str, values: Mapping[str, Any]) -> str:
    """Replace each `{name}` in the message; raises KeyError for a placeholder without a value."""
    return _Filler().vformat(message, (), values) if "{" in message else message


def placeholders(message: str) -> set[str]:
    """Return the names that `fill` needs values for."""
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


class _Filler(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if "/" not in format_spec:
            return super().format_field(value, format_spec)
        after_consonant, _, after_vowel = format_spec.partition("/")
        return f"{value}{particle(str(value), after_consonant, after_vowel)}"


def particle(word: str, after_consonant: str, after_vowel: str) -> str:
    """Return the particle that follows the word, by how its end is read in Korean; 로 follows ㄹ like a vowel.

    Latin words are read as loan words, capitals by the names of their letters, digits one by one. This is a rule of
    thumb: write a word that is read differently into the message itself, with its particle.
    """
    end = re.sub(r"[^\w%]+$", "", word)
    consonant, rieul = _final_sound(end)
    if rieul and after_vowel.startswith("로"):
        return after_vowel
    return after_consonant if consonant else after_vowel


def _final_sound(word: str) -> tuple[bool, bool]:
    """Return whether the word ends in a consonant, and whether that is ㄹ."""
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
    """Return escaped HTML in which `code` and [text](address) have their meaning from Markdown."""

    def element(match: re.Match[str]) -> str:
        code, label, address = match.groups()
        return f"<code>{code}</code>" if code else f'<a href="{address}">{label}</a>'

    # Escaped text contains no quotes or angle brackets, so nothing can break out of an element or attribute.
    return Markup(_MARKUP.sub(element, str(escape(text))))  # noqa: S704
