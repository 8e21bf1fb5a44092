"""Charts: ticks at round numbers, and positions in the frame."""

from __future__ import annotations

import pytest

from orchestrator.pages.charts import Frame, Line, Mark, make_chart, padded, polyline, ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 12, 6, [2, 4, 6, 8, 10, 12]),
        (70.3, 91.2, 4, [80, 90]),
        (5, 5, 4, [5]),
    ],
)
def test_ticks(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


def test_lines_and_marks_are_scaled_to_the_frame() -> None:
    frame = Frame(width=120, height=70, left=10, right=110, top=10, bottom=60)
    line, mark = Line("l", [(1, 0.0), (3, 0.5)], "tip"), Mark("m", (2, 1.0))
    chart = make_chart("title", "label", frame, ((1, 3), (0.0, 1.0)), [line], [mark])
    assert chart.lines == [("l", "10.0,60.0 110.0,35.0", "tip")]
    assert chart.marks == [Mark("m", (60.0, 10.0))]
    assert chart.x_ticks == [(10.0, "1"), (60.0, "2"), (110.0, "3")]
    assert [text for _, text in chart.y_ticks] == ["0.0", "0.5", "1.0"]


def test_a_single_value_has_a_range_and_is_visible() -> None:
    low, high = padded(5.0, 5.0)
    assert low < 5.0 < high
    assert polyline([(1.0, 2.0)]) == "1.0,2.0 1.0,2.0"
