"""What the page of a sweep says: what is best and how sure that is, in plain sentences."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import fmean

from orchestrator.pages.run_page import between, fixed, signed, signed_between
from orchestrator.sweep.swept_points import SweepData, finite, settings, several, word


def lead(data: SweepData) -> str:
    """What is best and by how much, in a sentence that says where this may be chance."""
    compared, tried = data.compared, several(len(data.points), "point")
    if not data.finished:
        return f"None of the {tried} finished, so there is nothing to choose from."
    if data.best == 0:
        told = f"Of {tried} none is better than the default, the config as written, by "
        told += f"{data.objective}"
        if compared is None:
            return f"{told}."
        return (
            f"{told}. On {compared.where} the default reaches {fixed(compared.default)} mAP (95 % "
            f"interval {between(compared.default_ci)})."
        )
    best = next(point for point in data.points if point.number == data.best)
    named = f" ({settings(best, data.axes)})" if len(data.axes) <= 3 else ""
    told = f"Of {tried}, point {data.best}{named} is best by {data.objective}"
    if compared is None:
        return f"{told}. How much it gains is not known: " + (
            "the default could not be tuned."
            if any(point.number == 0 and not point.finished for point in data.points)
            else "there were no images to compare it with the default on."
        )
    gap, *ends = compared.difference
    low, high = ends
    told += (
        f". On {compared.where} it reaches {fixed(compared.best)} mAP and the default "
        f"{fixed(compared.default)}: a difference of {signed(gap)} (95 % interval "
        f"{signed_between(ends)})"
    )
    if math.isnan(low):
        return f"{told}. Too few images say whether this is chance."
    if low > 0:
        return f"{told}."
    if high < 0:
        return f"{told}. It does worse there than the default, so keep the default."
    return f"{told}. This is no clear gain: the interval includes zero, so it may be chance."


def caution(data: SweepData) -> str:
    """Says so where few of the points can be compared."""
    stopped, failed = data.count("stopped"), data.count("failed")
    of = f"of {several(len(data.points), 'point')}"
    if 2 * failed > len(data.points):
        return (
            f"Most points failed: {failed:,} {of}. The table has the reasons; what is said about "
            f"the fields rests on {len(data.finished):,} finished."
        )
    if 2 * (stopped + failed) > len(data.points):
        also = f" and {failed:,} failed" if failed else ""
        return (
            f"Most points did not finish: {of}, {stopped:,} were stopped early{also}. What a "
            "stopped point would have reached is unknown."
        )
    return ""


def field_words(data: SweepData, name: str) -> str:
    """What a field's plot shows, for those who don't see it."""
    done = data.finished
    if not done:
        return "No point finished."
    by_word: dict[str, list[float]] = defaultdict(list)
    for point in done:
        by_word[word(point.fields[name])].append(fmean(point.objective))
    told = [
        f"{role.capitalize()}: {word(point.fields[name])}."
        for role in ("best", "default")
        for point in data.points
        if data.role(point) == role
    ]
    if len(by_word) <= 6:
        order = sorted(by_word, key=lambda key: -fmean(by_word[key]))
        means = [f"{key}: {fixed(fmean(by_word[key]))} ({len(by_word[key])})" for key in order]
        told.append(f"Mean by value (and finished points): {'; '.join(means)}.")
    else:
        top = [point.fields[name] for point in done[: len(done) // 4]]
        if top and all(isinstance(value, int | float) for value in top):
            told.append(f"The best quarter of the points has {word(min(top))} to {word(max(top))}.")
    return " ".join(told)


def learning_words(data: SweepData) -> str:
    """What the curves of the best point and of the default do, for those who don't see them."""
    told = []
    for point in data.points:
        curves = [curve for curve in map(finite, point.curves) if curve]
        if curves and data.role(point) in ("best", "default"):
            first, last = (fmean(curve[i] for curve in curves) for i in (0, -1))
            told.append(
                f"{data.role(point)} from {fixed(first)} after epoch 1 to {fixed(last)} after "
                f"epoch {point.epochs}"
            )
    return f"{data.objective} by epoch, to epoch {data.epochs}: {'; '.join(told)}"


def stops(data: SweepData) -> str:
    """How many points were stopped, and when."""
    after = Counter(point.epochs for point in data.points if point.status == "stopped")
    if not after:
        return "No point was stopped early."
    total = sum(after.values())
    when = [f"{count:,} after epoch {epoch}" for epoch, count in sorted(after.items())]
    by = "ASHA stopped" if data.halving else "Stopped early:"
    return f"{by} {total:,} of {several(len(data.points), 'point')}: {', '.join(when)}."


def saved(data: SweepData) -> float | None:
    """The share of a full first round's epochs that stopping early saved."""
    full = data.epochs * len(data.points)
    spared = sum(data.epochs - point.epochs for point in data.points if point.status == "stopped")
    return spared / full if full else None


def text_words(both: Mapping[int, tuple[float, float]], found: tuple[float, float] | None) -> str:
    """What choosing by text would have meant; `found` is the rank correlation and its p."""
    chosen = max(both, key=lambda number: (both[number][0], -number))
    images = [y for _, y in both.values()]
    reached = both[chosen][1]
    rank = 1 + sum(y > reached for y in images)
    told = (
        f"A sweep without labelled images would have chosen point {chosen}, the best on text; on "
        + (
            "the images it is the best too."
            if rank == 1
            else f"the images it has rank {rank} of {len(both)}, "
            f"{fixed(max(images) - reached)} mAP below the best."
        )
    )
    points = several(len(both), "point")
    if found is None:
        why = "too few to rank" if len(both) < 3 else "all alike on text or on the images"
        return f"There is no rank correlation: the {points} are {why}."
    correlation, p = found
    if not p < 0.05:
        means = "this may be chance, so nothing says that text can choose"
    elif correlation < 0:
        means = "text ranks the settings the wrong way round, so it must not choose"
    elif correlation < 0.7:
        means = "text tells poor settings from good ones, but not which of the good ones is best"
    else:
        means = "text ranks the settings much as the images do, so it can choose without labels"
    return (
        f"Spearman’s rank correlation is {fixed(correlation, 2)} over {points}: {means}, for this "
        f"label list and these fields. {told}"
    )
