"""Noun phrases of a caption: short texts in place of image regions.

Runs of words between function words, as in RAKE (Rose et al., 2010), without a parser.
"""

from __future__ import annotations

import re

from prompt_tuning.plain_text import visible

_BOUNDARIES = frozenset(
    """
    a about above across after against all along also am among an and another any are around as at
    be because been before behind being below beneath beside besides between beyond both but by can
    could did do does down during each either every few for from had has have he her here hers him
    his how if in inside into is it its itself just like many may me might more most must my near
    next no nor not of off on one onto or other our out outside over own past per quite rather same
    she should since so some such than that the their them then there these they this those though
    through to too toward towards two three four under until up upon us very was we were what when
    where which while who whom whose will with within without would you your
    sits sitting sit stands standing stand lies lying lie lays seen looks looking look runs running
    run walks walking walk hangs hanging hang holds holding hold held rests resting rest placed made
    flies flying fly grows growing grow parked eats eating plays playing played swims swimming
    covered filled surrounded wears wearing worn shows showing shown set leans leaning used using
    photo picture image side front top
    """.split()
)


def noun_phrases(caption: str) -> list[str]:
    """The caption's phrases, lower case, in order, without repeats.

    >>> noun_phrases("A brown horse stands on the green grass.")
    ['brown horse', 'green grass']
    """
    phrases: list[str] = []
    for clause in re.split(r"[^\w\s'-]+", visible(caption).lower()):
        run: list[str] = []
        for word in [*clause.split(), "and"]:
            if word not in _BOUNDARIES:
                run.append(word)
            elif run:
                phrases.append(" ".join(run))
                run = []
    return list(dict.fromkeys(phrases))
