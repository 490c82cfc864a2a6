"""Tile geometry: cores cover the side, windows add the halo, nothing is cut without need."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix.engine.pixels.tiling import Span, split_side

sides = st.integers(1, 3000)
aligns = st.sampled_from([1, 2, 4])


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_cores_cover_the_side_once(side: int, tiles: int, halo: int, align: int) -> None:
    pieces = split_side(side, max_length=tiles * align, halo=halo, align=align)
    assert pieces[0].core.start == 0
    assert pieces[-1].core.end == side
    assert all(left.core.end == right.core.start for left, right in pairwise(pieces))
    assert all(part.core.length > 0 for part in pieces)


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_windows_hold_the_halo_and_are_aligned(side: int, tiles: int, halo: int, align: int) -> None:
    for part in split_side(side, max_length=tiles * align, halo=halo, align=align):
        assert part.window.start % align == 0
        assert part.core.start % align == 0
        assert part.window.start == 0 or part.core.start - part.window.start >= halo
        assert part.window.end == side or part.window.end - part.core.end >= halo


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_windows_have_a_maximum_length(side: int, tiles: int, halo: int, align: int) -> None:
    rounded = halo + -halo % align
    for part in split_side(side, max_length=tiles * align, halo=halo, align=align):
        assert part.window.length <= tiles * align + 2 * rounded


def test_side_that_fits_is_not_cut() -> None:
    assert len(split_side(256 + 2 * 64, max_length=256, halo=64)) == 1
    assert len(split_side(256 + 2 * 64 + 1, max_length=256, halo=64)) == 2


def test_cores_have_about_equal_length() -> None:
    assert [part.core.length for part in split_side(1001, max_length=250, align=1)] == [201, 201, 201, 201, 197]


@pytest.mark.parametrize(
    ("side", "max_length", "halo", "align"), [(0, 8, 0, 1), (8, 0, 0, 1), (8, 8, -1, 1), (8, 6, 0, 4)]
)
def test_invalid_sizes_are_refused(side: int, max_length: int, halo: int, align: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        split_side(side, max_length=max_length, halo=halo, align=align)


def test_span_scales_shifts_and_grows() -> None:
    span = Span(start=10, end=14)
    assert span.scaled(4) == Span(start=40, end=56)
    assert span.within(Span(start=8, end=20)) == Span(start=2, end=6)
    assert span.grown(12, 20) == Span(start=0, end=20)
    assert list(range(30))[span.slice] == [10, 11, 12, 13]
