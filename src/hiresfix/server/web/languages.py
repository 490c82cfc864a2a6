"""The languages of the pages: which one an address or a browser asks for, and every text, number and date in it.

Translations are `locales/<code>/LC_MESSAGES/messages.po`, read as they are: nothing is compiled, so a wheel and an
editable install behave alike. English needs none, its texts are the messages themselves. A missing translation is
shown in English; a test sees to it that none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale
from babel.dates import format_date
from babel.lists import format_list
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

from hiresfix.server.web.message_format import fill

LOCALES = Path(__file__).parent / "locales"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language by its `code`; `prefix` is what its addresses begin with, `region` as Open Graph wants it."""

    code: str
    name: str
    region: str
    prefix: str

    def __call__(self, message: str, **values: Any) -> str:
        """The message in this language, filled in."""
        forms = _translations(self.code).get(message)
        return fill(forms[0] if forms else message, values)

    def plural(self, one: str, many: str, number: float, **values: Any) -> str:
        """The form that suits `number`, which is filled in as `{n}` in this language's digits."""
        forms = _translations(self.code).get(one) or (one, many)
        chosen = forms[0] if number == 1 else forms[-1]
        return fill(chosen, {"n": self.number(number), **values})

    def number(self, value: float, digits: int | None = None) -> str:
        """With `digits` decimal places at most; as many as it has without."""
        rounded = value if digits is None else round(value, digits)
        return format_decimal(rounded, locale=self.locale, decimal_quantization=False)

    def long_date(self, day: date) -> str:
        return format_date(day, format="long", locale=self.locale)

    def either(self, items: list[str]) -> str:
        """`a, b or c`."""
        return format_list(items, style="or", locale=self.locale)

    def path(self, path: str) -> str:
        """The address of a page in this language, from its address without one ("/models")."""
        return (self.prefix + path).rstrip("/") or "/"

    @property
    def locale(self) -> Locale:
        return Locale.parse(self.code)


ENGLISH = Language(code="en", name="English", region="en_US", prefix="")
JAPANESE = Language(code="ja", name="日本語", region="ja_JP", prefix="/ja")
KOREAN = Language(code="ko", name="한국어", region="ko_KR", prefix="/ko")
LANGUAGES = (ENGLISH, JAPANESE, KOREAN)

FORMER_PREFIXES: Mapping[str, Language] = {"jp": JAPANESE, "kr": KOREAN}
"""Countries that others' addresses have in place of languages."""


def named(code: str) -> Language | None:
    return next((language for language in LANGUAGES if language.code == code), None)


def preferred(accept_language: str) -> Language:
    """The language that suits an Accept-Language header best; English if none does."""
    wanted = sorted(_weighted(accept_language), key=lambda item: -item[1])
    known = (named(tag.lower().partition("-")[0]) for tag, _ in wanted)
    return next(filter(None, known), ENGLISH)


def _weighted(header: str) -> list[tuple[str, float]]:
    """Tags with their weights above 0, in the order of the header; what cannot be read is left out."""
    found = []
    for item in header.split(",")[:20]:
        tag, _, weight = item.partition(";q=")
        try:
            quality = float(weight or 1)
        except ValueError:
            continue
        if tag.strip() and quality > 0:
            found.append((tag.strip(), quality))
    return found


@cache
def _translations(code: str) -> Mapping[str, tuple[str, ...]]:
    """Forms by message, of one form or one for each number; nothing for English."""
    file = LOCALES / code / "LC_MESSAGES" / "messages.po"
    if code == ENGLISH.code:
        return {}
    with file.open("rb") as lines:
        catalog = read_po(lines, locale=code)
    found = {}
    for message in catalog:
        key, *_ = message.id if isinstance(message.id, tuple) else (message.id,)
        forms = message.string if isinstance(message.string, tuple) else (message.string,)
        if key and forms[0] and not message.fuzzy:
            found[str(key)] = tuple(map(str, forms))
    return found


def translated(language: Language, message: str) -> tuple[str, ...] | None:
    """The raw forms of a message, for scripts; None where English stands."""
    return _translations(language.code).get(message)
