"""The examples of CONTRIBUTING.md that change the repository, tried on a copy of what they change."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from babel.messages.pofile import read_po

from hiresfix.server.database import migrations, schema
from hiresfix.server.web import languages, message_catalogs
from hiresfix.server.web.languages import Language
from tests.conftest import own_database
from tests.docs.pages import page


def _file(name: str) -> str:
    """What the page says that the file holds."""
    return next(block.code for block in page("CONTRIBUTING.md").blocks if block.marker == f"file: {name}")


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    with own_database(postgres) as url:
        yield url


def test_the_migration_is_applied_after_all_others(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(migrations.VERSIONS.parent, copy)
    config = Config()
    config.set_main_option("script_location", str(copy))
    newest = ScriptDirectory.from_config(config).get_current_head()
    (copy / "versions" / "0099_notes.sql").write_text(_file("0099_notes.sql"))
    # The page cannot know how many migrations there are when it is read.
    (copy / "versions" / "0099_notes.py").write_text(_file("0099_notes.py").replace('"0098"', f'"{newest}"'))
    monkeypatch.setattr(migrations, "VERSIONS", copy / "versions")
    monkeypatch.setattr(schema, "_alembic_config", lambda: config)

    assert schema.migrate(empty_database) == (None, "0099")
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select note from teams").fetchall() == []


def test_the_language_gets_a_file_of_all_messages_and_speaks_once_they_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_catalogs, "LOCALES", tmp_path)
    monkeypatch.setattr(languages, "LOCALES", tmp_path)
    names: dict[str, Any] = {}
    exec(_file("german.py"), names)
    german: Language = names["GERMAN"]

    lacking = message_catalogs.update(german)
    file = _file_of(german, tmp_path)
    with file.open("rb") as lines:
        assert lacking == len(read_po(lines))

    shown = next(block.code for block in page("CONTRIBUTING.md").blocks if block.language == "po")
    (msgid,), (msgstr,) = re.findall(r'msgid "(.*)"', shown), re.findall(r'msgstr "(.*)"', shown)
    text = file.read_text(encoding="utf-8")
    assert f'msgid "{msgid}"\nmsgstr ""' in text
    file.write_text(text.replace(f'msgid "{msgid}"\nmsgstr ""', f'msgid "{msgid}"\nmsgstr "{msgstr}"'))
    assert message_catalogs.update(german) == lacking - 1
    languages._translations.cache_clear()
    assert german(msgid) == msgstr


def _file_of(language: Language, folder: Path) -> Path:
    return folder / language.code / "LC_MESSAGES" / "messages.po"
