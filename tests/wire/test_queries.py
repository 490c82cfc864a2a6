"""The public contract, reading query strings and the Prefer header: contract.md 5.3, 9."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix import wire
from hiresfix.errors import InvalidRequest
from hiresfix.wire import JobQuery, PagePosition

JOB = UUID("b2c3d4e5-f6a7-8901-bcde-f23456789012")
PLACE = PagePosition(created_at=datetime(2026, 3, 15, 10, 0, 0, 123456, tzinfo=UTC), id=JOB)


def test_empty_query_means_defaults() -> None:
    assert wire.parse_job_query({}) == JobQuery(
        status=None, model=None, limit=20, after=None, team=False, search=None, include_models=False
    )


def test_all_query_parameters_are_read() -> None:
    query = {
        "status": "FAILED",
        "model": "clarity-upscale",
        "limit": "100",
        "cursor": wire.cursor(PLACE),
        "scope": "team",
        "search": str(JOB).upper(),
        "include_models": "true",
    }
    assert wire.parse_job_query(query) == JobQuery(
        status="FAILED", model="clarity-upscale", limit=100, after=PLACE, team=True, search=JOB, include_models=True
    )


def test_empty_and_unknown_parameters_are_ignored() -> None:
    assert wire.parse_job_query({"status": "", "cursor": "", "limit": "", "sort": "up"}) == JobQuery()


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("status", "RUNNING", "QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED"),
        ("status", "queued", "QUEUED"),
        ("limit", "0", "between 1 and 100"),
        ("limit", "101", "between 1 and 100"),
        ("limit", "-1", "between 1 and 100"),
        ("limit", "1.5", "between 1 and 100"),
        ("limit", "ten", "between 1 and 100"),
        ("limit", "\N{ARABIC-INDIC DIGIT FIVE}", "between 1 and 100"),
        ("limit", "9" * 5000, "between 1 and 100"),
        ("scope", "all", "user, team"),
        ("search", "sunset", "UUID"),
        ("search", "{b2c3d4e5-f6a7-8901-bcde-f23456789012}", "UUID"),
        ("include_models", "1", "true, false"),
        ("model", "a\0b", "id of a model"),
        ("model", "m" * 101, "id of a model"),
        ("cursor", "abc", "nextCursor"),
        ("cursor", "\N{SNOWMAN}" * 40, "nextCursor"),
        ("cursor", "A" * 40, "nextCursor"),
    ],
)
def test_wrong_parameter_names_what_is_expected(name: str, value: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_job_query({name: value})
    assert list(caught.value.details) == [name]
    assert hint in caught.value.details[name][0]


def test_all_wrong_parameters_are_reported() -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_job_query({"status": "x", "limit": "x", "scope": "x", "search": "x", "cursor": "x"})
    assert set(caught.value.details) == {"status", "limit", "scope", "search", "cursor"}


@given(
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.uuids(),
)
def test_cursor_keeps_microseconds(moment: datetime, identity: UUID) -> None:
    place = PagePosition(created_at=moment, id=identity)
    assert wire.parse_job_query({"cursor": wire.cursor(place)}).after == place


def test_changed_cursor_is_refused() -> None:
    cursor = wire.cursor(PLACE)
    for position, character in enumerate(cursor):
        tampered = cursor[:position] + ("A" if character != "A" else "B") + cursor[position + 1 :]
        with pytest.raises(InvalidRequest):
            wire.parse_job_query({"cursor": tampered})
    for cut in (cursor[:-1], cursor[:-4], cursor + "AAAA", cursor + "="):
        with pytest.raises(InvalidRequest):
            wire.parse_job_query({"cursor": cut})


def test_cursor_of_impossible_time_is_refused() -> None:
    from hiresfix.wire import queries

    packed = queries._POSITION.pack(2**62, JOB.bytes)
    forged = base64.urlsafe_b64encode(packed + queries._check(packed, "")).decode()
    with pytest.raises(InvalidRequest):
        wire.parse_job_query({"cursor": forged})


def test_cursor_is_url_safe() -> None:
    later = PagePosition(created_at=PLACE.created_at + timedelta(days=3), id=UUID(int=2**128 - 1))
    assert wire.cursor(later).replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["wait=5"], 5),
        (['Wait = "10"'], 10),
        (["respond-async, wait=7"], 7),
        (["wait=3; strict", "wait=9"], 3),
        (["wait=0"], 0),
        (["wait"], None),
        (["wait=soon", "wait=4"], 4),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["handling=lenient; wait=5"], None),
        (["wait=99999999999999999999"], None),
    ],
)
def test_prefer_header_follows_rfc_7240(headers: list[str], seconds: int | None) -> None:
    assert wire.preferred_wait(headers) == seconds


@pytest.mark.parametrize("modality", ["image", "video", "music"])
def test_three_modalities_are_known(modality: str) -> None:
    assert wire.parse_modality({"modality": modality}) == modality


def test_unknown_modality_is_refused() -> None:
    assert wire.parse_modality({}) is None
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_modality({"modality": "smell"})
    assert caught.value.details == {"modality": ["Expected one of image, video, music"]}
