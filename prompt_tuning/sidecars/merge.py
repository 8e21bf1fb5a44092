"""The three-way merge of keywords: the user's, the artifact's, and our record as their base.

- What our record names and still stands is ours; all else in the sidecar is the user's.
- What our record names and is gone, the user took out: it is rejected and never comes back.
- A new artifact replaces what is ours. What the user has is never written beside it, nor taken out.

Keywords are compared as labels are (`Dogs` is `dog`); only ours are compared letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prompt_tuning.sidecars.keywords import keyword_key, leaf
from prompt_tuning.sidecars.record import Record


@dataclass(frozen=True)
class Keywords:
    """What a sidecar has: keywords, paths in the hierarchy, and our record, if it has one."""

    flat: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    record: Record | None = None


@dataclass(frozen=True)
class Suggestion:
    """A tag of an artifact: its score, and its path in the artifact's hierarchy."""

    score: float
    path: str = ""


def ours(found: Keywords) -> tuple[str, ...]:
    """Our keywords that still stand.

    One that the user filed under a path of their own is theirs: their program keeps both together.
    """
    base = found.record or Record()
    filed = _keys(map(leaf, _users_paths(found)))
    standing = dict.fromkeys(found.flat)
    return tuple(name for name in base.tags if name in standing and keyword_key(name) not in filed)


def our_paths(found: Keywords) -> tuple[str, ...]:
    """Our paths that still stand."""
    base = found.record or Record()
    return tuple(path for path in base.paths if path in found.paths)


def users(found: Keywords) -> tuple[str, ...]:
    """The user's keywords, and the last levels of the user's paths; each is a label "yes"."""
    mine = set(ours(found))
    flat = (name for name in found.flat if name not in mine)
    return tuple(dict.fromkeys([*flat, *map(leaf, _users_paths(found))]))


def rejected(found: Keywords) -> tuple[str, ...]:
    """What the user took out, now or before, and has not put back; each is a label "no"."""
    present = _keys([*found.flat, *users(found)])
    return tuple(name for name in _ever_rejected(found) if keyword_key(name) not in present)


def merge(
    found: Keywords, artifact: str, suggestions: Mapping[str, Suggestion], created: bool
) -> Record | None:
    """The record to write: its tags and paths replace ours, and nothing else changes.

    None if there is nothing to write and nothing to remember. `suggestions`: tags by keyword, best
    first. `created`: whether the file will be ours.
    """
    base = found.record or Record()
    theirs, no = _keys(users(found)), _ever_rejected(found)
    unfiled = _ever_unfiled(found)
    refused, without_path = _keys(no), _keys(unfiled)
    tags: dict[str, float] = {}
    paths: list[str] = []
    agreed = [name for name in base.agreed if keyword_key(name) in theirs]
    taken = set(refused)
    for name, suggestion in suggestions.items():
        key = keyword_key(name)
        if key in theirs:
            agreed.append(name)
        elif key not in taken:
            taken.add(key)  # two spellings of one label are one tag
            tags[name] = round(suggestion.score, 4)
            if suggestion.path and key not in without_path:
                paths.append(suggestion.path)
    record = Record(
        artifact=artifact,
        tags=tags,
        paths=tuple(dict.fromkeys(paths)),
        agreed=tuple(dict.fromkeys(agreed)),
        rejected=no,
        unfiled=unfiled,
        created=created,
    )
    remembered = (record.tags, record.agreed, record.rejected, record.unfiled)
    return record if found.record or any(remembered) else None


def _users_paths(found: Keywords) -> list[str]:
    base = found.record or Record()
    return [path for path in found.paths if path not in base.paths]


def _ever_rejected(found: Keywords) -> tuple[str, ...]:
    """All that the user ever took out, sorted; what came back may go again, so it stays here."""
    base = found.record or Record()
    present = _keys([*found.flat, *users(found)])
    gone = (name for name in (*base.tags, *base.agreed) if keyword_key(name) not in present)
    return tuple(sorted({*base.rejected, *gone}))


def _ever_unfiled(found: Keywords) -> tuple[str, ...]:
    """The labels whose path, but not keyword, the user ever took out, sorted."""
    base = found.record or Record()
    gone = (leaf(path) for path in base.paths if path not in found.paths)
    standing = _keys(found.flat)
    return tuple(sorted({*base.unfiled, *(name for name in gone if keyword_key(name) in standing)}))


def _keys(names: Iterable[str]) -> set[str]:
    return {keyword_key(name) for name in names}
