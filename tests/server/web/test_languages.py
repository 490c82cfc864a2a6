"""Messages and their translations: complete, with the right placeholders, particles and style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

import hiresfix
from hiresfix import errors, messages
from hiresfix.messages import TEMPLATES
from hiresfix.models.catalog import MODELS
from hiresfix.server.web import error_texts, message_catalogs
from hiresfix.server.web.languages import ENGLISH, JAPANESE, KOREAN, LANGUAGES, LOCALES, Language, preferred_language
from hiresfix.server.web.message_format import fill, particle, placeholders, rich

TRANSLATED = [language for language in LANGUAGES if language is not ENGLISH]
MIDDLEWARE_CODES = {"cors_refused", "invalid_http"}
each_language = pytest.mark.parametrize("language", TRANSLATED, ids=lambda language: language.code)


def catalog_of(language: Language) -> Catalog:
    with (LOCALES / language.code / "LC_MESSAGES" / "messages.po").open("rb") as lines:
        return read_po(lines, locale=language.code, abort_invalid=True)


def pairs(language: Language) -> Iterator[tuple[str, str]]:
    """Yield each message, or its plural, with each of its translations."""
    for message in catalog_of(language):
        source = message.id[-1] if isinstance(message.id, tuple) else message.id
        forms = message.string if isinstance(message.string, tuple) else (message.string or "",)
        if source:
            yield from ((str(source), str(form)) for form in forms)


@each_language
def test_every_message_in_use_is_translated(language: Language) -> None:
    used = {message.id for message in message_catalogs.all_messages() if message.id}
    known = {message.id for message in catalog_of(language) if message.id}
    assert (used - known, known - used) == (set(), set()), "run `python -m hiresfix.server.web`, then translate"
    assert [source for source, translation in pairs(language) if not translation] == []
    assert [message.id for message in catalog_of(language) if message.fuzzy and message.id] == []


@each_language
def test_translations_keep_placeholders_code_and_links(language: Language) -> None:
    for source, translation in pairs(language):
        assert placeholders(translation) == placeholders(source), translation
        assert code_in(translation) == code_in(source), translation
        assert re.findall(r"\]\(([^)]*)\)", translation) == re.findall(r"\]\(([^)]*)\)", source), translation


def code_in(message: str) -> set[str]:
    """Return the texts between backticks, without Korean particles inside."""
    bare = re.sub(r"\{(\w+):`[^}]*\}", r"{\1}`", message)
    return set(re.findall(r"`([^`]+)`", bare))


def test_korean_particles_follow_the_word() -> None:
    for _, translation in pairs(KOREAN):
        assert not re.search(r"[을를이가은는과와로]\s*[(/][^)}]{0,3}[을를이가은는과와로]\)", translation), translation
        # After a placeholder, a particle must be chosen by the value.
        assert not re.search(r"\{\w+\}`?(?:을|를|이|가|은|는|과|와|으로|로)(?:\s|$|[,.])", translation), translation


def test_translations_use_one_polite_style() -> None:
    for _, translation in pairs(KOREAN):
        # 합니다체: requests may end in 세요, questions in 나요, 가요 or 까요; 개요 and 필요 are nouns.
        assert not re.search(r"(?:하라|한다|된다)(?:[.!?]|$)", translation), translation
        assert not re.search(r"(?<![세나가까개필])요(?:[.!?,]|\s*\(|$)", translation), translation
    for _, translation in pairs(JAPANESE):
        assert not re.search(r"(?:である|だ|する|った)。", translation), translation


def test_every_error_code_has_a_text() -> None:
    def codes(kind: type[errors.HiresfixError]) -> set[str]:
        # Errors that a client library adds reach no page.
        served = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
        return {kind.code}.union(*(codes(child) for child in served))

    assert set(error_texts.ERRORS) == codes(errors.HiresfixError) | MIDDLEWARE_CODES


@each_language
def test_catalog_texts_are_translated(language: Language) -> None:
    for model in MODELS:
        preset_texts = (text for preset in model.param_presets for text in (preset.label, preset.help))
        for text in (model.description, *(param.help for param in model.params), *preset_texts):
            assert language(text) != text


@each_language
def test_messages_keep_placeholders_in_translation(language: Language) -> None:
    known = {str(message.id): str(message.string) for message in catalog_of(language) if message.id}
    for reason, template in TEMPLATES.items():
        assert error_texts.MESSAGES[reason] == template.text
        assert placeholders(known[template.text]) == template.placeholders, reason


def test_message_reasons_match_their_constants() -> None:
    constants = {name for name, value in vars(messages).items() if isinstance(value, messages.MessageTemplate)}
    assert {name.lower() for name in constants} == TEMPLATES.keys()
    assert all(getattr(messages, name).reason == name.lower() for name in constants)


def test_every_message_is_used_with_its_params() -> None:
    used = set()
    for reason, keywords in calls_of_templates():
        used.add(reason)
        if keywords is not None:
            assert keywords == TEMPLATES[reason].placeholders, reason
    assert used == TEMPLATES.keys()


def calls_of_templates() -> Iterator[tuple[str, set[str] | None]]:
    """Reason and keywords of each use of `messages.NAME` in the source; None where they are not literal."""
    for file in Path(hiresfix.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if (
                not isinstance(node, ast.Attribute)
                or not isinstance(node.value, ast.Name)
                or node.value.id != "messages"
            ):
                continue
            if node.attr.lower() in TEMPLATES and node.attr.isupper():
                call = calls.get(id(node))
                keywords = {keyword.arg for keyword in call.keywords} if call else {None}
                yield node.attr.lower(), None if None in keywords else {str(name) for name in keywords}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("집", "집을 집으로 집이"),
        ("서울", "서울을 서울로 서울이"),
        ("파리", "파리를 파리로 파리가"),
        ("3", "3을 3으로 3이"),
        ("8", "8을 8로 8이"),
        ("2", "2를 2로 2가"),
        ("10", "10을 10으로 10이"),
        ("URL", "URL을 URL로 URL이"),
        ("PNG", "PNG를 PNG로 PNG가"),
        ("JPEG", "JPEG을 JPEG으로 JPEG이"),
        ("webhook", "webhook을 webhook으로 webhook이"),
        ("faithful-upscale", "faithful-upscale을 faithful-upscale로 faithful-upscale이"),
        ("Clarity Upscaler", "Clarity Upscaler를 Clarity Upscaler로 Clarity Upscaler가"),
        ("집)", "집)을 집)으로 집)이"),
        ("", "를 로 가"),
    ],
)
def test_particle_follows_the_sound_of_the_word(word: str, expected: str) -> None:
    filled = fill("{word:을/를} {word:으로/로} {word:이/가}", {"word": word})
    assert filled == expected
    assert particle(word, "은", "는") == ("은" if "을" in expected else "는")


def test_missing_placeholder_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("Costs {credits}", {})


def test_rich_text_escapes_all_but_code_and_links() -> None:
    expected = 'Use <code>a&lt;b</code> &amp; <a href="/v2">the API</a>'
    assert rich("Use `a<b` & [the API](/v2)") == expected
    assert "<script" not in rich('<script>`x`[y](javascript:"onclick)')


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("ja", "ja"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8", "ko"),
        ("de, ja;q=0.5, en;q=0.7", "en"),
        ("fr-FR, JA-jp;q=0.4", "ja"),
        ("ja;q=0, ko;q=0.1", "ko"),
        ("zh, *;q=0.1", "en"),
        ("ja;q=nonsense, ;;;,", "en"),
    ],
)
def test_accept_language_chooses_the_language(header: str, code: str) -> None:
    assert preferred_language(header).code == code


def test_numbers_dates_and_lists_follow_the_language() -> None:
    day = date(2026, 3, 5)
    assert [language.long_date(day) for language in LANGUAGES] == ["March 5, 2026", "2026年3月5日", "2026년 3월 5일"]
    assert [language.number(1234.56, 1) for language in LANGUAGES] == ["1,234.6"] * 3
    assert ENGLISH.plural("{n} credit", "{n} credits", 1) == "1 credit"
    assert ENGLISH.plural("{n} credit", "{n} credits", 2000) == "2,000 credits"
    assert KOREAN.plural("{n} day", "{n} days", 90) == "90일"
    assert JAPANESE.either(["a", "b"]) == "aまたはb"


def test_scripts_get_their_texts_and_the_apis() -> None:
    texts = message_catalogs.messages_for_script(KOREAN, "pages.js")
    assert texts["Copied"] == ("복사했습니다",)
    assert texts[error_texts.ERRORS["not_found"]]
    assert texts[MODELS[0].params[0].help]
    assert "Quick start" not in texts
    assert message_catalogs.messages_for_script(KOREAN, "i18n.js") == {}
    assert message_catalogs.messages_for_script(ENGLISH, "pages.js") == {}
