"""Examples in CONTRIBUTING.md that change the repository, run on a copy."""

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
    """Return the content that the page gives for a file."""
    return next(block.code for block in page("CONTRIBUTING.md").blocks if block.marker == f"file: {name}")


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    with own_database(postgres) as url:
        yield url


def test_example_migration_is_applied_last(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(migrations.VERSIONS.parent, copy)
    config = Config()
    config.set_main_option("script_location", str(copy))
    newest = ScriptDirectory.from_config(config).get_current_head()
    (copy / "versions" / "0099_notes.sql").write_text(_file("0099_notes.sql"))
    # The page cannot know the newest migration, so the test puts it in.
    (copy / "versions" / "0099_notes.py").write_text(_file("0099_notes.py").replace('"0098"', f'"{newest}"'))
    monkeypatch.setattr(migrations, "VERSIONS", copy / "versions")
    monkeypatch.setattr(schema, "_alembic_config", lambda: config)

    assert schema.migrate(empty_database) == (None, "0099")
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select note from teams").fetchall() == []


def test_example_language_is_added_and_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_catalogs, "LOCALES", tmp_path)
    monkeypatch.setattr(languages, "LOCALES", tmp_path)
    names: dict[str, Any] = {}
    exec(_file("german.py"), names)
    german: Language = names["GERMAN"]

    missing = message_catalogs.update(german)
    file = tmp_path / german.code / "LC_MESSAGES" / "messages.po"
    with file.open("rb") as lines:
        assert missing == len(read_po(lines))

    example = next(block.code for block in page("CONTRIBUTING.md").blocks if block.language == "po")
    (msgid,), (msgstr,) = re.findall(r'msgid "(.*)"', example), re.findall(r'msgstr "(.*)"', example)
    text = file.read_text(encoding="utf-8")
    assert f'msgid "{msgid}"\nmsgstr ""' in text
    file.write_text(text.replace(f'msgid "{msgid}"\nmsgstr ""', f'msgid "{msgid}"\nmsgstr "{msgstr}"'))
    assert message_catalogs.update(german) == missing - 1
    languages._translations.cache_clear()
    assert german(msgid) == msgstr
