"""What a sidecar remembers of us, in a namespace of its own, so that it travels with the photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prompt_tuning.storage import digest

NAMESPACE = "urn:datafree:sidecar:1.0/"
"""Of our properties; XMP asks for `/` or `#` at the end."""

TEXTS = ("artifact", "created", "hash")
LISTS = ("tags", "paths", "agreed", "rejected", "unfiled")
"""Our properties: texts, and bags of texts. An item of `tags` is `0.9132 dog`."""


@dataclass(frozen=True)
class Record:
    """What we wrote into a sidecar, and what its user decided.

    `tags`: the keywords that are ours, with scores. `paths`: the same in the hierarchy. `artifact`:
    the version that gave them. `agreed`: tags that the user had already. `rejected`: tags that the
    user took out. `unfiled`: tags whose path the user took out. `created`: the file is ours.
    """

    artifact: str = ""
    tags: Mapping[str, float] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    agreed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    unfiled: tuple[str, ...] = ()
    created: bool = False

    def lists(self) -> dict[str, list[str]]:
        """The items of each of `LISTS`."""
        tags = [f"{score:.4f} {name}" for name, score in self.tags.items()]
        others = {name: list(getattr(self, name)) for name in LISTS[1:]}
        return {"tags": tags, **others}

    def texts(self) -> dict[str, str]:
        """The value of each of `TEXTS`."""
        return {"artifact": self.artifact, "created": str(self.created), "hash": self._hash()}

    def _hash(self) -> str:
        """Of all but the order, as programs may reorder a bag."""
        lists = {name: sorted(items) for name, items in self.lists().items()}
        return digest([lists, self.artifact, self.created])[:32]


def read_record(texts: Mapping[str, str], lists: Mapping[str, list[str]]) -> Record | None:
    """The record in a sidecar's properties, or None if there is none.

    A record that another program cut or changed does not match its hash. Then all keywords count as
    the user's; what the user rejected stays so.
    """
    if not any(texts.values()) and not any(lists.values()):
        return None
    rejected = tuple(lists.get("rejected", ()))
    try:
        pairs = [item.split(" ", 1) for item in lists.get("tags", ())]
        found = Record(
            artifact=texts.get("artifact", ""),
            tags={name: float(score) for score, name in pairs},
            paths=tuple(lists.get("paths", ())),
            agreed=tuple(lists.get("agreed", ())),
            rejected=rejected,
            unfiled=tuple(lists.get("unfiled", ())),
            created=texts.get("created") == "True",
        )
    except ValueError:
        return Record(rejected=rejected)
    return found if found.texts()["hash"] == texts.get("hash") else Record(rejected=rejected)
