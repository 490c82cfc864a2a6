"""The studio from end to end: a real browser, server, worker and images."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect

from hiresfix import messages
from hiresfix.server.accounts import authentication, login_links
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Failed
from hiresfix.server.web.languages import JAPANESE
from tests.browser.studio_page import StudioPage
from tests.browser.visit import needs_browser
from tests.conftest import Site
from tests.journey.conftest import Service
from tests.server.conftest import wait_until

pytestmark = needs_browser


def sign_in_path(server: Service) -> str:
    """Create a login link and return its path."""

    async def create_link() -> str:
        async with Database(server.database_url, max_size=1) as database, database.transaction() as tx:
            owner = await authentication.first_owner(tx)
            return await login_links.create(tx, owner, valid_for=timedelta(minutes=5), actor="os:tester")

    with ThreadPoolExecutor(1) as executor:  # Playwright's event loop runs in this thread
        token = executor.submit(lambda: asyncio.run(create_link())).result()
    return login_links.url(server.url, token).removeprefix(server.url)


def fail_next_job(server: Service, error: str) -> None:
    """Let the next job fail with this error, in place of a worker."""

    async def fail() -> None:
        queue = Queue(server.database_url)
        async with Database(server.database_url, max_size=1) as database:
            claim = await lifecycle.claim(database, worker="test", lease_seconds=60)
            assert claim is not None
            async with database.transaction() as tx:
                outcome = Failed(error=error, retryable=False)
                await lifecycle.settle(tx, queue, claim, outcome, public_url=server.url)

    with ThreadPoolExecutor(1) as executor:  # Playwright's event loop runs in this thread
        executor.submit(lambda: asyncio.run(fail())).result()


@pytest.fixture
def paused(working: Service) -> Iterator[Callable[[], None]]:
    """Pause the worker; calling the fixture resumes it."""
    (worker,) = [psutil.Process(process.pid) for process in working.processes if "worker" in process.args]  # type: ignore[operator]  # a list of words
    worker.send_signal(signal.SIGSTOP)
    yield lambda: worker.send_signal(signal.SIGCONT)
    worker.send_signal(signal.SIGCONT)


def test_first_visitor_upscales_with_the_mouse(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio()
    address = sign_in_path(studio.server)
    studio.open(address, signed_in=False)
    page = studio.page
    expect(studio.at("#notice")).to_have_text("You are signed in.")
    assert "signin" not in page.url
    expect(studio.at("#open-account")).to_contain_text("credits")
    studio.expect_accessible()

    before = studio.credits
    with page.expect_file_chooser() as chooser:
        studio.at("#choose").click()
    chooser.value.set_files(photo)
    expect(studio.at("#estimate")).to_contain_text("48 × 36 → 96 × 72")
    expect(studio.at("#estimate")).to_contain_text("3 credits")
    studio.choose_preset("faithful")
    expect(studio.at("#estimate")).to_contain_text("1 credit")
    studio.run()
    studio.wait_for_result()
    expect(studio.at("#notice")).to_contain_text("Done: colosseum.png, 96 × 72.")
    assert studio.at(".view:nth-child(2) img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
        96,
        72,
    ]
    assert studio.at(".view:nth-child(1) img").evaluate("image => image.naturalWidth") == 48
    assert studio.credits == before - 1

    handle = studio.at(".handle")
    box = handle.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 80, steps=4)
    page.mouse.up()
    assert int(handle.get_attribute("aria-valuenow") or 0) > 55
    view = studio.at(".surface").bounding_box()
    assert view
    page.mouse.click(view["x"] + view["width"] * 0.3, view["y"] + 60)  # the alternative to dragging
    assert handle.get_attribute("aria-valuenow") == "30"
    studio.expect_accessible()
    with page.expect_download() as download:
        studio.at("#toolbar a[download]").click()
    with Image.open(download.value.path()) as result:
        assert result.size == (96, 72)

    again = new_studio()
    again.open(address, signed_in=False)
    expect(again.at("#signin-error")).to_contain_text("already been used")
    again.forgive("401")


def test_keyboard_alone_is_enough(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio().open(signed_in=False)
    keys = studio.page.keyboard
    studio.at("#open-signin").focus()
    keys.press("Enter")
    keys.type(studio.server.key)
    keys.press("Enter")
    expect(studio.at("#open-account")).to_be_focused()
    studio.at("#choose").focus()
    with studio.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(photo)
    studio.at("#preset-general").focus()
    for _ in range(8):
        keys.press("ArrowRight")
    expect(studio.at("#preset-faithful")).to_be_checked()
    keys.press("Tab")
    keys.press("ArrowLeft")
    expect(studio.at("#scale-1")).to_be_checked()
    expect(studio.at("#estimate")).to_contain_text("1 credit")
    keys.press("Control+Enter")
    studio.wait_for_result()

    studio.at(".surface").focus()
    keys.press("s")
    studio.at(".handle").focus()
    split = studio.at(".handle").get_attribute("aria-valuenow")
    keys.press("ArrowRight")
    assert studio.at(".handle").get_attribute("aria-valuenow") == str(int(split or 0) + 2)
    keys.press("Home")
    assert "0%" in (studio.at(".handle").get_attribute("aria-valuetext") or "")
    studio.at(".surface").focus()
    for key, mode in (("d", "side"), ("h", "hold"), ("b", "blink"), ("s", "slider")):
        keys.press(key)
        expect(studio.at("#viewer")).to_have_attribute("data-mode", mode)
    keys.down("Space")
    expect(studio.at("#viewer")).to_have_attribute("data-before", "")
    keys.up("Space")
    expect(studio.at("#viewer")).not_to_have_attribute("data-before", "")
    keys.press("?")
    expect(studio.at("#help")).to_be_visible()
    studio.expect_accessible()
    studio.at("#single-keys").focus()
    keys.press("Space")
    keys.press("Escape")
    expect(studio.at(".surface")).to_be_focused()
    keys.press("d")
    expect(studio.at("#viewer")).to_have_attribute("data-mode", "slider")


def test_zoom_and_pan_keep_both_images_aligned(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio().open()
    studio.add_images(photo)
    studio.choose_preset("line-art")
    studio.at("label[for=scale-8]").click()  # too large to be shown at 800% from the start
    studio.run()
    studio.wait_for_result()
    page = studio.page
    box = studio.at(".surface").bounding_box()
    assert box
    transforms = [studio.transforms]

    def wait_for_move() -> None:
        wait_until(lambda: studio.transforms != transforms[-1])
        transforms.append(studio.transforms)

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)  # on the handle
    page.mouse.wheel(0, -100)
    wait_for_move()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.wheel(0, -200)
    wait_for_move()
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 90)
    page.mouse.up()
    wait_for_move()
    page.keyboard.press("Shift+ArrowRight")
    wait_for_move()
    before, after = (float(at[-1].split(",")[-2]) for at in transforms[-2:])
    assert before - after == pytest.approx(60)
    studio.at(".tool[data-mode=side]").click()
    page.keyboard.press("+")
    wait_for_move()
    page.keyboard.press("8")
    wait_for_move()
    page.keyboard.press("+")
    assert studio.zoom == 800
    page.keyboard.press("0")
    wait_for_move()
    assert [first for first, _ in transforms] == [second for _, second in transforms]
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement?.id === 'preview'")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement === null")


def test_studio_works_on_a_phone(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio(width=360, height=740, has_touch=True, is_mobile=True, locale="ko-KR").open()
    assert studio.at("html").get_attribute("lang") == "ko"
    expect(studio.at("#camera")).to_be_visible()
    assert studio.at("#capture").get_attribute("capture") == "environment"
    studio.expect_no_horizontal_scroll()
    studio.add_images(photo)
    studio.choose_preset("text")
    expect(studio.at("#run")).to_be_in_viewport()
    studio.expect_no_horizontal_scroll()
    studio.at("#run").tap()
    studio.wait_for_result()
    studio.expect_no_horizontal_scroll()
    studio.expect_accessible()
    small = """elements => elements.map(element => element.getBoundingClientRect())
        .filter(box => box.width && (box.width < 24 || box.height < 24)).length"""
    assert (
        studio.at(
            "main button, main select, main summary, main label[for]:not(.field label, .slider label)"
        ).evaluate_all(small)
        == 0
    )
    studio.at("#open-account").tap()
    expect(studio.at("#account .balance")).to_be_visible()
    studio.expect_no_horizontal_scroll()


def test_japanese_studio_respects_the_input_method(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio(dark=True).open("/ja/studio", signed_in=False)
    assert studio.at("html").get_attribute("lang") == "ja"
    studio.at("#open-signin").click()
    studio.at("#key").fill("afk_" + "0" * 40)
    studio.page.keyboard.press("Enter")
    expect(studio.at("#signin-error")).to_contain_text("API キー")
    studio.expect_accessible()
    studio.forgive("401")
    studio.at("#key").fill(studio.server.key)
    studio.page.keyboard.press("Enter")
    expect(studio.at("#notice")).to_have_text("サインインしました。")
    assert studio.page.evaluate("localStorage.getItem('hiresfix.key')") is None  # for this tab only
    enter = "{key: 'Enter', isComposing: true, bubbles: true, cancelable: true}"
    composing = f"field => field.dispatchEvent(new KeyboardEvent('keydown', {enter}))"
    studio.at("#expert summary").click()
    assert studio.at("#param-seed").evaluate(composing) is False  # prevented: nothing is submitted
    studio.add_images(photo)
    studio.choose_preset("line-art")
    expect(studio.at("#estimate")).to_contain_text("1 クレジット")
    studio.run()
    studio.wait_for_result()
    expect(studio.at("#notice")).to_contain_text("完了")
    expect(studio.at(".view:nth-child(2) .tag")).to_have_text("処理後")
    studio.expect_accessible()
    visible = studio.at("main").inner_text()
    assert not any(word in visible for word in ("Creativity", "History", "credit", "Before"))
    expect(studio.at("#run")).to_have_text("アップスケール")


def test_job_survives_reload_in_another_language(
    new_studio: Callable[..., StudioPage], photo: Path, paused: Callable[[], None]
) -> None:
    studio = new_studio().open()
    studio.add_images(photo)
    studio.choose_preset("line-art")
    studio.run()
    expect(studio.at("#active-jobs")).to_contain_text("queue")
    studio.expect_accessible()
    studio.page.goto(f"{studio.server.url}/ko/studio")
    studio.wait_until_ready()
    expect(studio.at("#active-jobs")).to_contain_text("다음 차례")
    expect(studio.at("#preset-line-art")).to_be_checked()
    paused()
    studio.wait_for_result()
    studio.page.reload()
    studio.wait_until_ready()
    studio.wait_for_result()  # image and result are still there
    assert studio.at(".view:nth-child(1) img").evaluate("image => image.naturalWidth") == 48


def test_cancelling_refunds_the_credits(
    new_studio: Callable[..., StudioPage], photo: Path, paused: Callable[[], None]
) -> None:
    studio = new_studio().open()
    before = studio.credits
    studio.add_images(photo)
    expect(studio.at("#estimate")).to_contain_text("3 credits")
    studio.run()
    cancel = studio.at("#active-jobs button", has_text="Cancel")
    expect(cancel).to_be_enabled()
    expect(studio.at("#run")).to_be_focused()
    assert studio.credits == before - 3
    cancel.press("Enter")
    expect(studio.at("#notice")).to_have_text("Cancelled. 3 credits refunded.")
    expect(studio.at("#active-jobs")).to_be_hidden()
    expect(studio.at("#run")).to_be_focused()
    expect(studio.at("#credits")).to_have_text(f"{before:,} credits")
    assert studio.credits == before


def test_failed_job_is_explained_in_japanese(
    new_studio: Callable[..., StudioPage], photo: Path, paused: Callable[[], None]
) -> None:
    studio = new_studio().open("/ja/studio")
    error = messages.PROMPT_TOO_LONG(chunks=9, tokens=75, limit=4)
    explanation = JAPANESE(messages.PROMPT_TOO_LONG.text, **error.params)
    assert "BREAK" in explanation
    assert "prompt" not in explanation
    studio.add_images(photo)
    studio.run()
    expect(studio.at("#active-jobs button")).to_be_enabled()
    fail_next_job(studio.server, error)
    expect(studio.at("#active-jobs .notice")).to_contain_text(explanation)
    expect(studio.at("#active-jobs .notice [lang=en]")).to_have_count(0)
    studio.at("#history-list li").first.locator("[data-action=showDetails]").click()
    expect(studio.at("#details-body .notice")).to_have_text(explanation)
    studio.expect_accessible()


def test_failed_job_of_earlier_release_is_english(
    new_studio: Callable[..., StudioPage], photo: Path, paused: Callable[[], None]
) -> None:
    studio = new_studio().open("/ja/studio")
    studio.add_images(photo)
    studio.run()
    expect(studio.at("#active-jobs button")).to_be_enabled()
    fail_next_job(studio.server, str.__str__(messages.PROMPT_TOO_LONG(chunks=9, tokens=75, limit=4)))
    expect(studio.at("#active-jobs .notice [lang=en]")).to_contain_text("The prompt makes 9 chunks of 75 tokens")


def test_rejected_file_is_explained_and_costs_nothing(new_studio: Callable[..., StudioPage], tmp_path: Path) -> None:
    studio = new_studio(locale="ko-KR").open()
    before = studio.credits
    (tmp_path / "notes.txt").write_text("not an image")
    studio.at("#files").set_input_files(tmp_path / "notes.txt")
    expect(studio.at("#notice")).to_contain_text("이미지가 아닙니다.")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish" * 50)
    studio.at("#files").set_input_files(tmp_path / "broken.png")
    expect(studio.at("#estimate")).to_contain_text("이 파일은 이미지로 사용할 수 없습니다.")
    expect(studio.at("#estimate")).to_contain_text("PNG 파일이 손상되었거나")
    studio.expect_accessible()
    studio.run()
    expect(studio.at("#notice")).to_contain_text("이 파일은 이미지로 사용할 수 없습니다.")
    assert studio.credits == before
    studio.forgive("400")


def test_url_is_fetched_or_its_error_shown(new_studio: Callable[..., StudioPage], photo: Path, site: Site) -> None:
    studio = new_studio().open()
    address = site.add("/far/colosseum.png", photo.read_bytes())
    studio.at("#url").fill(f"{address}.gone")
    studio.page.keyboard.press("Enter")
    expect(studio.at("#notice")).to_contain_text("404")
    studio.forgive("400")
    studio.at("#url").fill(address)
    studio.page.keyboard.press("Enter")
    expect(studio.at("#estimate")).to_contain_text("48 × 36 → 96 × 72")
    assert studio.at(".view img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 48


def test_copied_code_runs(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio(permissions=["clipboard-read", "clipboard-write"]).open()
    studio.add_images(photo)
    studio.choose_preset("text")
    expect(studio.at("#estimate")).to_contain_text("1 credit")
    studio.at("#code summary").click()

    def copied(language: str) -> str:
        studio.at(f"#tab-{language}").click()
        studio.at("#copy").click()
        expect(studio.at("#notice")).to_contain_text("Copied")
        return str(studio.page.evaluate("navigator.clipboard.readText()"))

    environment = {**os.environ, "HIRESFIX_API_KEY": studio.server.key}
    answer = subprocess.run(
        ["bash", "-c", copied("curl")], env=environment, capture_output=True, text=True, timeout=120
    )
    job = studio.server.job(json.loads(answer.stdout)["jobId"])
    assert (job["model"], job["input"]["sharpen"]) == ("faithful-upscale", 1)
    result = subprocess.run(
        [sys.executable, "-c", copied("python")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert httpx.get(result.stdout.strip()).headers["content-type"] == "image/png", result.stderr
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    result = subprocess.run(
        ["node", "--input-type=module", "--eval", copied("javascript")],
        env={**environment, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert httpx.get(result.stdout.strip()).headers["content-type"] == "image/png", result.stderr


def test_variants_are_shown_and_compared(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio().open()
    studio.add_images(photo)
    studio.choose_preset("line-art")
    studio.at("#variants summary").click()
    studio.at("#variant-count").select_option("3")
    expect(studio.at("#run")).to_have_text("Create 3 variants")
    expect(studio.at("#estimate")).to_contain_text("3 credits")
    studio.run()
    studio.wait_for_result(panes=4)
    expect(studio.at(".view .tag")).to_have_text(["Before", "Sharpening 0.5", "Sharpening 1.25", "Sharpening 2"])
    studio.expect_accessible()
    studio.at(".view button.tag", has_text="1.25").click()
    studio.wait_for_result(panes=2)
    chooser = studio.at("[data-side=left]")
    chooser.select_option(index=1)
    expect(studio.at(".view .tag")).to_have_text(["Left", "Right"])
    assert studio.at(".view:nth-child(1) img").evaluate("image => image.naturalWidth") == 96


def test_history_reuses_settings_and_deletes_files(new_studio: Callable[..., StudioPage], photo: Path) -> None:
    studio = new_studio().open()
    studio.add_images(photo)
    studio.choose_preset("text")
    studio.run()
    studio.wait_for_result()
    item = studio.at("#history-list li").first
    expect(item.locator("img")).to_be_visible()
    expect(item).to_contain_text("Files expire in 8")  # 89 days, or 90
    studio.choose_preset("general")
    item.locator("[data-action=reuse]").click()
    expect(studio.at("#preset-text")).to_be_checked()
    expect(studio.at("#param-sharpen")).to_have_value("1")
    item.locator("[data-action=showDetails]").click()
    expect(studio.at("#details-body")).to_contain_text("Sharpening")
    studio.expect_accessible()
    studio.page.keyboard.press("Escape")
    studio.page.on("dialog", lambda dialog: dialog.accept())
    item.locator("[data-action=deleteFiles]").press("Enter")
    expect(item).to_contain_text("Files deleted")
    expect(item.locator(":focus")).to_have_count(1)  # the button is gone, but its item keeps the focus
    expect(studio.at("#viewer")).to_have_attribute("data-count", "1")


def test_account_dialog_shows_keys_ledger_and_deliveries(
    new_studio: Callable[..., StudioPage], photo: Path, site: Site
) -> None:
    studio = new_studio().open()
    site.answers = [410]
    job = studio.server.submit(site.add("/p.png", photo.read_bytes()), webhookUrl=f"{site.url}/hook")
    studio.server.finished(job)
    studio.at("#open-account").click()
    expect(studio.at("#account-panel")).to_contain_text(job[:8])
    studio.expect_accessible()
    studio.at("#account-keys").click()
    studio.at("#key-name").fill("for a test")
    studio.page.keyboard.press("Enter")
    expect(studio.at("#account-panel .secret")).to_contain_text("afk_")
    secret = studio.at("#account-panel .secret code").inner_text()
    assert httpx.get(f"{studio.server.url}/v2/me", headers={"X-API-Key": secret}).status_code == 200
    studio.expect_accessible()
    studio.page.on("dialog", lambda dialog: dialog.accept())
    studio.at("#account-keys").click()
    studio.at("tr", has_text="for a test").get_by_role("button").click()
    expect(studio.at("tr", has_text="for a test")).to_have_count(0)
    assert httpx.get(f"{studio.server.url}/v2/me", headers={"X-API-Key": secret}).status_code == 401
    studio.at("#account-webhooks").click()
    row = studio.at("#account-panel tbody tr", has_text=job[:8])
    expect(row).to_contain_text("Gave up (410)")
    studio.expect_accessible()
    row.get_by_role("button", name="Resend").click()
    expect(row).to_contain_text("Waiting")
    wait_until(lambda: len(site.received) == 2, seconds=60)
    assert site.received[0][1] == site.received[1][1]
    studio.at("#account-device").click()
    studio.at("#account-panel input[type=checkbox]").check()
    assert studio.page.evaluate("localStorage.getItem('hiresfix.key')") == studio.server.key
    studio.at("#account-panel button", has_text="Sign out and delete").click()
    expect(studio.at("#open-signin")).to_be_visible()
    assert studio.page.evaluate("sessionStorage.length") == 0
    assert studio.page.evaluate("localStorage.getItem('hiresfix.key')") is None


def test_another_browser_shows_the_results(new_studio: Callable[..., StudioPage], photo: Path, site: Site) -> None:
    studio = new_studio()
    job = studio.server.submit(site.add("/p.png", photo.read_bytes()))
    studio.server.finished(job)
    studio.open()
    studio.at(f"#history-list li[data-id='{job}'] [data-action=show]").click()
    studio.wait_for_result(panes=1)
    assert studio.at(".view img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
    expect(studio.at(".filmstrip-add")).to_be_visible()  # images can still be added
