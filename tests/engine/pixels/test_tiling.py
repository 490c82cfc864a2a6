"""Geometry: cores cover, windows see, nothing is cut without need."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix.engine.pixels.tiling import Span, parts

sides = st.integers(1, 3000)
aligns = st.sampled_from([1, 2, 4])


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_cores_cover_the_side_once_and_in_order(side: int, tiles: int, halo: int, align: int) -> None:
    found = parts(side, most=tiles * align, halo=halo, align=align)
    assert found[0].core.start == 0
    assert found[-1].core.end == side
    assert all(left.core.end == right.core.start for left, right in pairwise(found))
    assert all(part.core.length > 0 for part in found)


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_windows_hold_the_halo_unless_the_picture_ends_and_begin_aligned(
    side: int, tiles: int, halo: int, align: int
) -> None:
    for part in parts(side, most=tiles * align, halo=halo, align=align):
        assert part.window.start % align == 0
        assert part.core.start % align == 0
        assert part.window.start == 0 or part.core.start - part.window.start >= halo
        assert part.window.end == side or part.window.end - part.core.end >= halo


@given(sides, st.integers(1, 100), st.integers(0, 80), aligns)
def test_no_window_is_larger_than_a_part_with_its_halo_on_both_sides(
    side: int, tiles: int, halo: int, align: int
) -> None:
    rounded = halo + -halo % align
    for part in parts(side, most=tiles * align, halo=halo, align=align):
        assert part.window.length <= tiles * align + 2 * rounded


def test_a_side_that_fits_into_one_window_is_not_cut() -> None:
    assert len(parts(256 + 2 * 64, most=256, halo=64)) == 1
    assert len(parts(256 + 2 * 64 + 1, most=256, halo=64)) == 2


def test_cores_are_about_equal_instead_of_leaving_a_sliver() -> None:
    assert [part.core.length for part in parts(1001, most=250, align=1)] == [201, 201, 201, 201, 197]


@pytest.mark.parametrize(("side", "most", "halo", "align"), [(0, 8, 0, 1), (8, 0, 0, 1), (8, 8, -1, 1), (8, 6, 0, 4)])
def test_sizes_without_meaning_are_refused(side: int, most: int, halo: int, align: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        parts(side, most=most, halo=halo, align=align)


def test_a_span_finds_its_place_in_an_enlarged_picture_and_in_a_window() -> None:
    span = Span(start=10, end=14)
    assert span.scaled(4) == Span(start=40, end=56)
    assert span.within(Span(start=8, end=20)) == Span(start=2, end=6)
    assert span.grown(12, 20) == Span(start=0, end=20)
    assert list(range(30))[span.slice] == [10, 11, 12, 13]
