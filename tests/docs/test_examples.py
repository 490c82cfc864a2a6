"""Programs in the documents run and print what the documents show."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.docs import pages
from tests.docs.examples import ExampleFailed, Reader, check_output
from tests.docs.pages import Page

PAGES = pages.pages()
WITH_PROGRAMS = [page for page in PAGES if any(block.runs for block in page.blocks)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.name)
def test_every_program_of_a_page_runs(page: Page, reader: Reader) -> None:
    reader.read(page)
    if reader.skipped_languages:
        pytest.skip(f"not installed, so not run: {', '.join(sorted(set(reader.skipped_languages)))}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_have_known_languages_and_markers(page: Page) -> None:
    for block in page.blocks:
        place = f"{page.name}:{block.line}"
        assert block.language in (*pages.RUN, *pages.SHOWN), f"{place}: {block.language!r}"
        assert pages.marker_is_known(block.marker), f"{place}: {block.marker!r}"
        assert not block.marker.startswith("not run") or block.language in pages.RUN, place
    assert page.text.count("\n```") == 2 * len(page.blocks), f"{page.name} has a fence that the tests cannot parse"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_blocks_are_valid(page: Page) -> None:
    for block in page.blocks:
        if block.language == "json" and not block.marker:
            json.loads(block.code)


@pytest.mark.parametrize(
    ("shown", "output"),
    [("one\n", "two\n"), ("one\n", "one\ntwo\n"), ("a … c\n", "a b\n"), ("one\n…\n", "two\nthree\n")],
)
def test_different_output_is_noticed(shown: str, output: str) -> None:
    with pytest.raises(ExampleFailed):
        check_output(shown, output, "here")


@pytest.mark.parametrize(
    ("shown", "output"), [("one\n", "one\n"), ("a … c\n", "a b c\n"), ("one\n…\nfour\n", "one\ntwo\nthree\nfour\n")]
)
def test_output_with_gaps_matches(shown: str, output: str) -> None:
    check_output(shown, output, "here")


@pytest.fixture
def new_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Page]:
    def write(text: str) -> Page:
        path = tmp_path_factory.mktemp("page") / "page.md"
        path.write_text(text)
        return _TemporaryPage(path=path)

    return write


class _TemporaryPage(Page):
    @property
    def name(self) -> str:
        return self.path.name


FAILING = {
    "failing command": "```sh\nfalse\n```\n",
    "an unset variable": '```sh\necho "$UNSET_VARIABLE"\n```\n',
    "Python exception": "```python\nraise ValueError\n```\n",
    "different output": "```sh\necho one\n```\n<!-- output -->\n```text\ntwo\n```\n",
    "background program that ends": "<!-- background -->\n```sh\ntrue\n```\n```sh\nsleep 1\n```\n",
}


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
def test_page_with_wrong_program_fails(text: str, new_page: Callable[[str], Page], offline_reader: Reader) -> None:
    with pytest.raises(ExampleFailed):
        offline_reader.read(new_page(text))


def test_programs_of_a_page_share_state(new_page: Callable[[str], Page], offline_reader: Reader) -> None:
    text = (
        "<!-- file: words.txt -->\n```text\nhello\n```\n```sh\nword=$(cat words.txt)\n```\n"
        "```python\nimport os\nword = os.environ['word']\n```\n<!-- not run: it would fail -->\n```sh\nfalse\n```\n"
        "```python\nprint(word)\n```\n<!-- output -->\n```text\nhel…\n```\n"
    )
    offline_reader.read(new_page(text))
