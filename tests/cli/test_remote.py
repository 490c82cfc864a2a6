"""`hiresfix upscale --remote`: a person's and a script's side of the client, against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hiresfix import cli
from hiresfix.cli import upscale
from hiresfix.client import flows
from tests.client.conftest import Answer, Asked, Stranger, Town, passed_on, told
from tests.conftest import png
from tests.server.conftest import wait_until

FAITHFUL = ("--model", "faithful-upscale")


@pytest.fixture(autouse=True)
def user(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_URL", town.url)
    monkeypatch.setenv("HIRESFIX_API_KEY", town.key)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def worker(town: Town) -> Iterator[None]:
    """Finishes every job that waits."""
    with town.working():
        yield


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, standard output, standard error."""

    def running(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hiresfix", "upscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return running


def objects(out: str) -> list[dict[str, Any]]:
    """What `--json` printed, among the logs of the server in this process."""
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def folder(tmp_path: Path, *names: str) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    for index, name in enumerate(names):
        (made / name).write_bytes(png(9 + index, 8))
    return made


@pytest.mark.usefixtures("worker")
def test_a_folder_goes_through_the_server_and_a_second_run_has_nothing_to_do(
    town: Town, run: Run, tmp_path: Path
) -> None:
    source, before = folder(tmp_path, "a.png", "b.png", "c.png"), town.jobs
    code, out, err = run(source, "-o", tmp_path / "out", "--jobs", "3", *FAITHFUL)
    assert code == 0, err
    results = [f"{name}-2x.png" for name in "abc"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == results
    assert sorted(Path(line).name for line in out.splitlines() if line.endswith(".png")) == results
    assert town.jobs == before + 3

    (source / "b.png").write_bytes(png(30, 30))
    (tmp_path / "out" / "c-2x.png").unlink()
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2x", "--json")
    assert (code, town.jobs) == (0, before + 6), "another setting is another picture"
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--json")
    assert (code, town.jobs) == (0, before + 6)
    assert {line["status"] for line in objects(out)} == {"skipped"}
    (source / "b.png").write_bytes(png(31, 30))
    (tmp_path / "out" / "c-2x.png").unlink()
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--json")
    lines = {Path(line["source"]).name: line for line in objects(out)}
    assert {name: line["status"] for name, line in lines.items()} == {
        "a.png": "skipped", "b.png": "done", "c.png": "done"
    }  # fmt: skip
    assert (lines["b.png"]["width"], lines["b.png"]["height"]) == (48, 34)
    assert town.value("select count(*) from jobs where id = %s", lines["b.png"]["job"]) == 1
    assert town.jobs == before + 8
    assert run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--again")[0] == 0
    assert town.jobs == before + 11


@pytest.mark.usefixtures("worker")
def test_a_pattern_names_files_and_one_picture_alone_is_made_anew_each_time(
    town: Town, run: Run, tmp_path: Path
) -> None:
    source, before = folder(tmp_path, "a.png", "a.jpg", "b.gif"), town.jobs
    assert run(source / "*.[pj]*g", "-o", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg-2x.png", "a.png-2x.png"]
    for count in (3, 4):
        assert run(source / "b.gif", "-o", tmp_path / "one.webp")[0] == 0
        assert town.jobs == before + count
    code, _, err = run(source / "*.tiff")
    assert code == 2
    assert "Nothing matches" in err


@pytest.mark.usefixtures("worker")
def test_results_beside_their_sources_are_no_pictures_to_enlarge_and_what_is_not_ours_is_not_overwritten(
    town: Town, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, before = folder(tmp_path, "a.png", "b.png", "._b.png"), town.jobs
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("~/in/*.png", *FAITHFUL)[0] == 0
    code, _, err = run(*source.glob("[!.]*.png"), *FAITHFUL, "--jobs", "2")  # as a shell names them the second time
    assert code == 0, err
    assert "2 made already." in err
    assert run(source, *FAITHFUL, "--scale", "4")[0] == 0
    names = {"a.png", "b.png", "._b.png", "a-2x.png", "b-2x.png", "a-4x.png", "b-4x.png"}
    assert {path.name for path in source.iterdir()} == names
    assert town.jobs == before + 4
    (source / "a-2x.png").write_bytes(png(50, 50))
    code, _, err = run(*source.glob("a*.png"), *FAITHFUL)
    assert code == 2
    assert "would overwrite the input" in " ".join(err.split())
    code, out, _ = run(source, *FAITHFUL, "--json")
    assert code == 1
    assert {Path(line["target"]).name: line["status"] for line in objects(out)} == {
        "a-2x.png": "failed", "b-2x.png": "skipped"
    }  # fmt: skip
    assert (source / "a-2x.png").read_bytes() == png(50, 50)
    assert town.jobs == before + 4
    assert run(source, *FAITHFUL, "--again")[0] == 0
    assert (source / "a-2x.png").read_bytes() != png(50, 50)


def test_what_was_interrupted_is_gone_on_with_and_paid_for_once(town: Town, tmp_path: Path, run: Run) -> None:
    source, before = folder(tmp_path, "a.png", "b.png"), town.jobs
    command = [sys.executable, "-m", "hiresfix", "upscale", str(source), "-o", "out", "--jobs", "2", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: town.jobs == before + 2)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - started < 30
    assert process.returncode == 130
    assert "goes on there" in err
    assert not (tmp_path / "out").exists()
    for job in town.value("select array_agg(id::text) from (select id from jobs order by created_at desc limit 2) j"):
        town.finish(job)
    code, _, err = run(source, "-o", "out", *FAITHFUL)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2x.png", "b-2x.png"]
    assert town.jobs == before + 2


def test_who_is_killed_before_the_answer_came_gets_the_same_job_from_the_next_run(
    town: Town, run: Run, worker: None, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worst moment: the server has made the job and was paid, and nobody knows its name."""
    source, before, dead = folder(tmp_path, "a.png"), town.jobs, threading.Event()

    def answer(asked: Asked) -> Answer:
        given = passed_on(town, asked)
        if asked.path == "/v2/images/upscale":
            dead.wait(60)
        return given

    stranger.answer = answer
    monkeypatch.setenv("HIRESFIX_URL", stranger.url)
    command = [sys.executable, "-m", "hiresfix", "upscale", str(source), "-o", "out", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: town.jobs == before + 1)
        process.kill()
    dead.set()
    code, _, err = run(source, "-o", "out", *FAITHFUL)
    assert code == 0, err
    assert (tmp_path / "out" / "a-2x.png").stat().st_size
    submitted = [asked for asked in stranger.asked if asked.path == "/v2/images/upscale"]
    assert len(submitted) == 2
    assert len({asked.headers["idempotency-key"] for asked in submitted}) == 1
    assert town.jobs == before + 1


def test_a_picture_is_given_once_it_is_whole_and_again_when_it_has_changed_or_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, given = folder(tmp_path), dict[Path, tuple[int, int]]()
    meanwhile: Iterator[Callable[[], object]] = iter(
        [
            lambda: (source / "a.png").write_bytes(b"half"),
            lambda: (source / "a.png").write_bytes(b"half and half"),
            lambda: (source / ".b.png").write_bytes(b"somebody's own"),
            lambda: source.rename(tmp_path / "unplugged"),
            lambda: (tmp_path / "unplugged").rename(source),
            lambda: None,
            lambda: (source / "a.png").write_bytes(b"another picture"),
            lambda: None,
        ]
    )
    monkeypatch.setattr(upscale, "time", SimpleNamespace(sleep=lambda seconds: next(meanwhile)()))
    appearing = upscale._appearing(source, given)
    for size in (len(b"half and half"), len(b"another picture")):
        assert [path.name for path in next(appearing)] == ["a.png"]
        assert given[source / "a.png"][0] == size
    given.clear()
    assert [path.name for path in next(appearing)] == ["a.png"]


def test_while_it_watches_what_a_busy_server_refused_is_tried_again_later(
    run: Run, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = folder(tmp_path, "a.png")
    busy = told(503, {"error": "Service temporarily unavailable"}, **{"Retry-After": "9999"})
    stranger.answer = lambda asked: busy if len(stranger.asked) < 3 else told(401, {"error": "Invalid API key"})
    monkeypatch.setenv("HIRESFIX_URL", stranger.url)
    monkeypatch.setattr(upscale, "POSTPONED_SECONDS", 0.0)
    monkeypatch.setattr(upscale, "WATCH_SECONDS", 0.01)
    code, out, _ = run("--watch", source, "-o", tmp_path / "out", "--json")
    assert code == 4
    assert [line["code"] for line in objects(out)] == ["unavailable", "unavailable", "unauthenticated"]
    assert len({asked.headers["idempotency-key"] for asked in stranger.asked}) == 1


def test_a_watched_folder_is_enlarged_as_it_fills(town: Town, tmp_path: Path, worker: None) -> None:
    source, told_of = folder(tmp_path, "a.png"), list[str]()
    command = [sys.executable, "-m", "hiresfix", "upscale", "--watch", str(source), "-o", "out", "--json", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told_of.append(process.stdout.readline())
            whole = png(40, 30)
            with (source / "b.png").open("wb") as slow:
                for index in range(0, len(whole), len(whole) // 4 + 1):
                    slow.write(whole[index : index + len(whole) // 4 + 1])
                    slow.flush()
                    time.sleep(0.5)
            told_of.append(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [json.loads(line) for line in [*told_of, *out.splitlines()]]
    assert [(Path(line["source"]).name, line["status"]) for line in lines] == [("a.png", "done"), ("b.png", "done")]


@pytest.mark.parametrize(
    ("status", "body", "code", "name"),
    [
        (400, {"error": "Validation error", "details": {"image": ["Too dark."]}}, 1, "validation_error"),
        (503, {"error": "Service temporarily unavailable", "code": "unavailable"}, 3, "unavailable"),
        (401, {"error": "Invalid API key"}, 4, "unauthenticated"),
        (402, {"error": "Insufficient credits", "creditsRequired": 3, "creditsAvailable": 1}, 5,
         "insufficient_credits"),
    ],
    ids=["refused", "busy", "key", "credits"],
)  # fmt: skip
def test_the_exit_code_says_what_kind_of_trouble_it_was(
    run: Run, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    status: int, body: dict[str, Any], code: int, name: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HIRESFIX_URL", stranger.url)
    stranger.answer = lambda asked: told(status, body, **{"Retry-After": "9999"})
    ended, out, err = run(folder(tmp_path, "a.png", "b.png"), "--json")
    assert ended == code
    lines = objects(out)
    hopeless = code != 1
    assert [line["status"] for line in lines] == ["failed", "not begun" if hopeless else "failed"]
    assert lines[0]["code"] == name
    assert ("1 more were not begun" in err) == hopeless
    assert len(stranger.asked) == (1 if hopeless else 2)
    assert ("1 failed, 1 not begun." if hopeless else "2 failed.") in err


def test_a_line_that_breaks_for_longer_once_the_server_was_there_is_waited_for(
    run: Run, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten times in a row, where a first contact is given six attempts."""
    monkeypatch.setattr(flows, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(flows, "LONGEST_BACKOFF", 0.001)
    monkeypatch.setenv("HIRESFIX_URL", stranger.url)
    broken = [False, *[True] * 10]

    def answer(asked: Asked) -> Answer | None:
        if asked.path == "/v2/images/upscale":
            return None if broken and broken.pop(0) else told(202, {"jobId": "7", "status": "QUEUED"})
        finished = {"id": "7", "status": "COMPLETED", "result": {"images": ["/r.png"]}}
        return (200, {}, b"picture") if asked.path == "/r.png" else told(200, finished)

    stranger.answer = answer
    code, _, err = run(folder(tmp_path, "a.png", "b.png"), "-o", "out")
    assert code == 0, err
    assert "2 made." in err
    broken[:] = [True] * 10
    code, _, err = run(folder(tmp_path / "out", "c.png", "d.png"), "-o", "out")
    assert code == 3
    assert "1 failed, 1 not begun." in err


def test_a_failed_job_fails_its_picture_and_is_submitted_anew_the_next_time(
    town: Town, run: Run, tmp_path: Path
) -> None:
    source, before = folder(tmp_path, "a.png"), town.jobs

    def fail() -> None:
        wait_until(lambda: town.jobs == before + 1)
        town.fail(str(town.value("select id from jobs order by created_at desc limit 1")), "It broke.")

    thread = threading.Thread(target=fail)
    thread.start()
    code, _, err = run(source, "-o", "out")
    thread.join()
    assert code == 1
    assert "It broke." in err

    def succeed() -> None:
        wait_until(lambda: town.jobs == before + 2)
        town.finish(str(town.value("select id from jobs order by created_at desc limit 1")))

    thread = threading.Thread(target=succeed)
    thread.start()
    assert run(source, "-o", "out")[0] == 0
    thread.join()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "Name pictures"),
        (("in", "--preset", "offline"), "server's operator"),
        (("in", "--strip"), "server's operator"),
        (("in", "--local", "--jobs", "2"), "whole machine"),
        (("--watch", "nowhere"), "not a folder"),
        (("--watch", "in"), "another one for the results"),
        (("--watch", "in", "-o", "in"), "another one for the results"),
        (("in", "--scale", "3"), "Expected one of 1, 2, 4, 8"),
    ],
    ids=["nothing", "preset", "strip", "jobs", "watch", "no output", "same", "scale"],
)
def test_wrong_usage_is_told_before_anything_is_done(
    run: Run, town: Town, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    folder(tmp_path, "a.png")
    before = town.jobs
    code, _, err = run(*arguments)
    assert code == 2
    assert hint in " ".join(err.replace("│", " ").split())
    assert town.jobs == before


def test_without_a_key_it_says_how_to_get_one(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HIRESFIX_API_KEY")
    code, _, err = run(folder(tmp_path, "a.png"))
    assert code == 1
    assert "HIRESFIX_API_KEY" in err


def test_completion_of_the_shell_knows_the_options() -> None:
    environment = {**os.environ, "_HIRESFIX_COMPLETE": "complete_bash", "COMP_WORDS": "hiresfix upscale --rem",
                   "COMP_CWORD": "2"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'hiresfix'; from hiresfix.cli import main; main()"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "--remote" in done.stdout.split()
