"""What the documents show is typed in and does what they say."""

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
    if reader.left_out:
        pytest.skip(f"not installed, so not run: {', '.join(sorted(set(reader.left_out)))}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_a_language_and_a_known_marker(page: Page) -> None:
    for block in page.blocks:
        place = f"{page.name}:{block.line}"
        assert block.language in (*pages.RUN, *pages.SHOWN), f"{place}: {block.language!r}"
        assert pages.marker_is_known(block.marker), f"{place}: {block.marker!r}"
        assert not block.marker.startswith("not run") or block.language in pages.RUN, place
    assert page.text.count("\n```") == 2 * len(page.blocks), f"{page.name} has a fence that the tests do not see"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_shown_as_json_is_json(page: Page) -> None:
    for block in page.blocks:
        if block.language == "json" and not block.marker:
            json.loads(block.code)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("one\n", "two\n"), ("one\n", "one\ntwo\n"), ("a … c\n", "a b\n"), ("one\n…\n", "two\nthree\n")],
)
def test_output_that_differs_is_noticed(shown: str, printed: str) -> None:
    with pytest.raises(ExampleFailed):
        check_output(shown, printed, "here")


@pytest.mark.parametrize(
    ("shown", "printed"), [("one\n", "one\n"), ("a … c\n", "a b c\n"), ("one\n…\nfour\n", "one\ntwo\nthree\nfour\n")]
)
def test_output_with_its_gaps_is_recognised(shown: str, printed: str) -> None:
    check_output(shown, printed, "here")


@pytest.fixture
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Page]:
    def write(text: str) -> Page:
        path = tmp_path_factory.mktemp("page") / "page.md"
        path.write_text(text)
        return _Loose(path=path)

    return write


class _Loose(Page):
    @property
    def name(self) -> str:
        return self.path.name


FAILING = {
    "a command that fails": "```sh\nfalse\n```\n",
    "a variable that nobody set": '```sh\necho "$NOBODY_SET_THIS"\n```\n',
    "python that raises": "```python\nraise ValueError\n```\n",
    "an output that is another": "```sh\necho one\n```\n<!-- output -->\n```text\ntwo\n```\n",
    "what was to go on running and ended": "<!-- background -->\n```sh\ntrue\n```\n```sh\nsleep 1\n```\n",
}


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
def test_a_page_with_a_wrong_program_fails(text: str, written: Callable[[str], Page], alone: Reader) -> None:
    with pytest.raises(ExampleFailed):
        alone.read(written(text))


def test_programs_of_a_page_share_folder_variables_and_names(written: Callable[[str], Page], alone: Reader) -> None:
    text = (
        "<!-- file: words.txt -->\n```text\nhello\n```\n```sh\nword=$(cat words.txt)\n```\n"
        "```python\nimport os\nword = os.environ['word']\n```\n<!-- not run: it would fail -->\n```sh\nfalse\n```\n"
        "```python\nprint(word)\n```\n<!-- output -->\n```text\nhel…\n```\n"
    )
    alone.read(written(text))
