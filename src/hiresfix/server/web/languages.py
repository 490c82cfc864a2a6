"""Languages of the pages: choose one by address or browser, and translate texts, numbers and dates.

Translations are read from `locales/<code>/LC_MESSAGES/messages.po` without compiling, so a wheel and an editable
install behave alike. English needs none: its texts are the messages themselves. A missing translation is shown in
English; a test checks that none is missing.
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
    """A language of the pages; calling it translates a message.

    Attributes:
        code: ISO 639 code.
        name: its own name, as the language menu shows it.
        region: locale for Open Graph.
        prefix: start of its addresses.
    """

    code: str
    name: str
    region: str
    prefix: str

    def __call__(self, message: str, **values: Any) -> str:
        """Return the message in this language, with its placeholders filled in."""
        forms = _translations(self.code).get(message)
        return fill(forms[0] if forms else message, values)

    def plural(self, one: str, many: str, number: float, **values: Any) -> str:
        """Return the form for `number`, which is also filled in as `{n}`."""
        forms = _translations(self.code).get(one) or (one, many)
        form = forms[0] if number == 1 else forms[-1]
        return fill(form, {"n": self.number(number), **values})

    def number(self, value: float, digits: int | None = None) -> str:
        """Return the formatted number, rounded to `digits` decimal places if given."""
        rounded = value if digits is None else round(value, digits)
        return format_decimal(rounded, locale=self.locale, decimal_quantization=False)

    def long_date(self, day: date) -> str:
        return format_date(day, format="long", locale=self.locale)

    def either(self, items: list[str]) -> str:
        """Join the items: "a, b or c"."""
        return format_list(items, style="or", locale=self.locale)

    def path(self, path: str) -> str:
        """Return the address of a page in this language; `path` is the one without language ("/models")."""
        return (self.prefix + path).rstrip("/") or "/"

    @property
    def locale(self) -> Locale:
        return Locale.parse(self.code)


ENGLISH = Language(code="en", name="English", region="en_US", prefix="")
JAPANESE = Language(code="ja", name="日本語", region="ja_JP", prefix="/ja")
KOREAN = Language(code="ko", name="한국어", region="ko_KR", prefix="/ko")
LANGUAGES = (ENGLISH, JAPANESE, KOREAN)

COUNTRY_PREFIXES: Mapping[str, Language] = {"jp": JAPANESE, "kr": KOREAN}
"""Country codes that other sites use in addresses; they redirect to the language."""


def find_language(code: str) -> Language | None:
    return next((language for language in LANGUAGES if language.code == code), None)


def preferred_language(accept_language: str) -> Language:
    """Return the best match for an Accept-Language header; English if there is none."""
    tags = sorted(_weighted_tags(accept_language), key=lambda item: -item[1])
    matches = (find_language(tag.lower().partition("-")[0]) for tag, _ in tags)
    return next(filter(None, matches), ENGLISH)


def _weighted_tags(header: str) -> list[tuple[str, float]]:
    """Return tags with weights above 0, in the order of the header; invalid items are skipped."""
    tags = []
    for item in header.split(",")[:20]:
        tag, _, weight = item.partition(";q=")
        try:
            quality = float(weight or 1)
        except ValueError:
            continue
        if tag.strip() and quality > 0:
            tags.append((tag.strip(), quality))
    return tags


@cache
def _translations(code: str) -> Mapping[str, tuple[str, ...]]:
    """Return the forms of each message: one, or one for each plural; empty for English."""
    file = LOCALES / code / "LC_MESSAGES" / "messages.po"
    if code == ENGLISH.code:
        return {}
    with file.open("rb") as lines:
        catalog = read_po(lines, locale=code)
    translations = {}
    for message in catalog:
        key, *_ = message.id if isinstance(message.id, tuple) else (message.id,)
        forms = message.string if isinstance(message.string, tuple) else (message.string,)
        if key and forms[0] and not message.fuzzy:
            translations[str(key)] = tuple(map(str, forms))
    return translations


def translation_forms(language: Language, message: str) -> tuple[str, ...] | None:
    """Return the forms of a message with placeholders unfilled, for scripts; None if English is shown."""
    return _translations(language.code).get(message)
