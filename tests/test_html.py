"""The number formats of the pages."""

from __future__ import annotations

from orchestrator.pages.html import config_value, duration, fixed, quantity, signed


def test_numbers_are_readable() -> None:
    assert [duration(s) for s in (0.42, 42.4, 59.7, 185, 7439)] == [
        *("0.4 s", "42 s", "1 min 0 s", "3 min 5 s", "2 h 4 min")
    ]
    assert [signed(v) for v in (1.24, -0.41, -0.04, None)] == ["+1.2", "−0.4", "0.0", "–"]
    assert [fixed(-1.0), fixed(None), fixed(0.125, 2)] == ["−1.0", "–", "0.12"]
    assert [quantity(1, "point"), quantity(2000, "point"), quantity(3, "class", "classes")] == [
        *("1 point", "2,000 points", "3 classes")
    ]
    assert quantity(2000) == "2,000"


def test_values_are_written_as_in_a_config() -> None:
    values = [0.000012345, 1e-05, 20.0, 3, True, None, "auto", [4, 8], {"std": 0.1}, [[1], ["a"]]]
    assert [config_value(value) for value in values] == [
        *("1.234e-5", "1e-5", "20", "3", "true", "null", "auto", "[4, 8]", "{std: 0.1}"),
        "[[1], [a]]",
    ]
