"""Rows and sentences about the figures of a metrics file."""

from __future__ import annotations

from orchestrator.pages.metrics_summary import class_rows, local_caveat


def test_class_rows_without_a_baseline() -> None:
    rows = class_rows({"tuned": {"a": 5.0, "b": None, "c": 0.0}}, None)
    assert [(row.name, row.difference) for row in rows] == [("c", None), ("a", None), ("b", None)]


def test_the_caveat_compares_local_scores_with_the_best_baseline() -> None:
    rows = {"zero_shot": (60.3, 70.8), "synonym_average": (59.7, 71.0), "tuned": (63.5, 74.0)}
    maps = {method: {"fused": fused, "local": local} for method, (fused, local) in rows.items()}
    assert "synonym_average reaches 71.0, tuned 74.0." in local_caveat({"map": maps})
    maps["tuned"] = {"fused": 80.0, "local": 74.0}
    assert local_caveat({"map": maps}) == ""
