"""Charts as SVG: where things are drawn, and that whatever they are called stays text."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from reports.charts import (
    ERRORS,
    HEIGHT,
    LEFT,
    WIDTH,
    Band,
    Chart,
    Dot,
    Level,
    Line,
    Strip,
    chart,
    smoothed,
    strip,
    thinned,
    ticks,
)

HOSTILE = '</svg><img src=x onerror="alert(1)">'


def drawn(*lines: Line, levels: tuple[Level, ...] = (), title: str = "Loss") -> ET.Element:
    return ET.fromstring(chart(Chart("loss", title, "It fell.", "step", list(lines), levels)))


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def heights(path: ET.Element) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path.get("d", ""))]


def test_higher_values_are_drawn_higher_and_all_inside() -> None:
    svg = drawn(Line("own", "own", [(1, 0.5), (2, 0.7), (3, 0.6)]))
    first, second, third = heights(of_class(svg, "line")[0])
    assert 0 < second < third < first < HEIGHT
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"


def test_errors_and_levels_have_room() -> None:
    svg = drawn(
        Line("own", "own", [(1, 0.5), (2, 0.5)], [0.1, 0.2], marks=True), levels=(Level("base", "base", 0.0),)
    )
    bars = [heights(bar) for bar in of_class(svg, "error")]
    assert bars[1][0] - bars[1][1] == pytest.approx(2 * (bars[0][0] - bars[0][1]), abs=0.3)
    level = heights(of_class(svg, "level")[0])[0]
    assert 0 < min(map(min, bars)) and max(map(max, bars)) < level < HEIGHT
    assert ERRORS == 2


def test_a_chart_says_what_it_shows_to_who_does_not_see_it() -> None:
    svg = drawn(Line("own", "own", [(1, 0.5), (2, 0.25)], marks=True))
    names = {element.get("id"): element.text for element in svg.iter() if element.get("id")}
    assert svg.get("role") == "img"
    assert [names[id] for id in svg.get("aria-labelledby", "").split()] == ["Loss", "It fell."]
    assert [mark[0].text for mark in of_class(svg, "dot-mark")] == ["own, 1: 0.5", "own, 2: 0.25"]


def test_hostile_names_stay_text() -> None:
    svg = drawn(Line(HOSTILE, "own", [(1, 1), (2, 2)]), levels=(Level(HOSTILE, "base", 1),), title=HOSTILE)
    assert {element.tag for element in svg.iter()} <= {"svg", "title", "desc", "path", "text"}
    assert svg[0].text == HOSTILE
    dots = ET.fromstring(strip(Strip("s", HOSTILE, HOSTILE, HOSTILE, [Dot(HOSTILE, "own", 1.0)])))
    assert {element.tag for element in dots.iter()} <= {"svg", "title", "desc", "path", "text", "circle"}


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart() -> None:
    svg = drawn(Line("own", "own", [(1, 0.5), (2, math.nan), (3, 0.6)], [0.1, 0.1, math.inf]))
    assert len(heights(of_class(svg, "line")[0])) == 2 and len(of_class(svg, "error")) == 1
    assert chart(Chart("a", "b", "c", "d", [Line("own", "own", [(1, math.nan)])])) == ""
    assert strip(Strip("a", "b", "c", "d", [Dot("own", "own", math.inf)])) == ""


@pytest.mark.parametrize("points", [[(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0)], [(0.0, 1e-9)]])
def test_one_point_and_equal_values_are_drawn(points: list[tuple[float, float]]) -> None:
    assert len(of_class(drawn(Line("own", "own", points, marks=True)), "dot-mark")) == len(points)


def test_a_band_lies_under_the_dots_it_holds() -> None:
    dots = [Dot("in", "own", 0.5), Dot("out", "winner", 0.9, large=True)]
    svg = ET.fromstring(strip(Strip("s", "t", "d", "x", dots, Band(0.4, 0.6))))
    band = of_class(svg, "band")[0]
    left, right = float(band.get("x", "")), float(band.get("x", "")) + float(band.get("width", ""))
    inside, outside = (float(dot.get("cx", "")) for dot in of_class(svg, "dot-mark"))
    assert left < inside < right < outside
    assert list(svg).index(band) < list(svg).index(of_class(svg, "dot-mark")[0])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.61, 0.83, [0.65, 0.7, 0.75, 0.8]), (-3, 3, [-2, 0, 2]), (7, 7.4, None)],
)
def test_ticks_are_round_numbers_within(low: float, high: float, expected: list[float] | None) -> None:
    found = ticks(low, high)
    assert expected is None or found == pytest.approx(expected)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found) and 2 <= len(found) <= 6


def test_ticks_are_labelled_with_the_decimals_of_their_steps() -> None:
    svg = drawn(Line("own", "own", [(0, 0.58), (2000, 0.83)]))
    labels = [element.text for element in of_class(svg, "tick")]
    assert {"0.6", "0.7", "0.8"} <= set(labels) and {"0", "1 000", "2 000"} <= set(labels)
    assert LEFT < WIDTH


def test_smoothing_starts_at_the_first_value_and_keeps_what_is_constant() -> None:
    assert smoothed([3.0] * 5, 4) == pytest.approx([3.0] * 5)
    found = smoothed([1.0, 0.0, 0.0, 0.0], 3)
    assert found[0] == 1 and found == sorted(found, reverse=True) and found[1] == pytest.approx(1 / 3)


def test_thinning_keeps_both_ends() -> None:
    points = [(float(step), 0.0) for step in range(1, 1001)]
    found = thinned(points, 100)
    assert (found[0], found[-1]) == (points[0], points[-1]) and len(found) <= 101
    assert thinned(points[:3], 100) == points[:3] and thinned([], 100) == []
