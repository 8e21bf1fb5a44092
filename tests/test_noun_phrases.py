"""The phrases of a sentence."""

from __future__ import annotations

from prompt_tuning.backbones.noun_phrases import noun_phrases


def test_letters_and_apostrophes_are_alike_however_they_are_written() -> None:
    plain = noun_phrases("The driver's red caf\u00e9 stands here.")
    assert plain == ["driver's red caf\u00e9"]
    assert noun_phrases("The driver\u2019s red cafe\u0301 stands here.") == plain
