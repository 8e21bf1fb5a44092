"""Which categories a sentence names, by whole-word name, synonym or kind in either number."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prompt_tuning.categories import Category
from prompt_tuning.knowledge.parts_of_speech import is_noun, may_be_verb, parts_of_speech, tag_words
from prompt_tuning.label_names import folded, head_position, name_key, singular
from prompt_tuning.plain_text import visible

# Compounds that show neither of their nouns: there is no dog in "a hot dog".
_NEITHER_NOUN = (
    "hot dog",
    "sea horse",
    "sea lion",
    "teddy bear",
    "computer mouse",
    "car park",
    "guinea pig",
    "flower bed",
    "palm of",
)
# Words, the possessive ending, and single other characters; a hyphen counts as a space.
_LETTERS = r"[^\W_](?:[^\W_]|[\u0300-\u036f])*"  # with combining accents
_TOKEN = re.compile(rf"{_LETTERS}(?:'(?!s\b){_LETTERS})*|'s\b|[^\w\s\u2010-\u2015-]")
_HYPHENS = frozenset("-\u2010\u2011")
# A word between one of each is a noun, whatever the rest of the sentence.
_BEFORE_NOUN = frozenset(
    """
    a an the this these those my your his its our their every each both many several another one
    two three four five six seven eight nine ten
    """.split()
)
_AFTER_NOUN = frozenset(
    """
    at beside by from in into near of on onto under with without is are was were has have . , ; !
    """.split()
)
# The object itself is visible with its part or in a group: "a tree branch", "a dog pack".
_PARTS = frozenset(
    """
    back beak branch breed couple cub deck door ear engine eye face family flock group half head
    headlight herd hood horn kind leg lid mane mast neck pack pair paw piece roof slice species tail
    trunk type variety wheel window windshield wing
    """.split()
)
# Only objects are cut, so the orange in "orange slices" is not a colour.
_CUTS = frozenset("half slice".split())
# But "a glass door" does not show a glass.
_MATERIALS = frozenset(
    """
    brick bronze copper cotton glass gold iron leather marble metal orange paper plastic rubber silk
    silver steel stone straw tin wood wool
    """.split()
)


@dataclass(frozen=True)
class _Token:
    """A word or other character, as written and case-folded, with its position in the text."""

    text: str
    word: str
    start: int
    end: int


class NounMatcher:
    """Finds the categories that a text names; the longest name at a position wins.

    So "hot dog" does not name "dog", and "tree frog", if listed as a kind of frog, does not name
    "tree". A name does not count where it is not a noun ("I saw a dog") or only describes another
    noun ("an apple tree", "the glass door").
    """

    def __init__(
        self, categories: Sequence[Category], kinds: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`kinds`: unreviewed kinds by category name; one of two categories counts for neither."""
        owner: dict[str, int | None] = {}
        # A name as written wins over the singular of another name: "glasses" and "glass".
        for form in (_written, _counted):
            for i, category in enumerate(categories):
                for name in (*category.names, *category.kinds):
                    owner.setdefault(form(name), i)
        reviewed = set(owner)
        for i, category in enumerate(categories):
            for name in (kinds or {}).get(category.name, ()):
                for spelling in {_written(name), _counted(name)} - reviewed:
                    owner[spelling] = i if owner.get(spelling, i) == i else None
        for compound in _NEITHER_NOUN:
            owner.setdefault(_written(compound), None)
        self._owner = owner
        # By first word, the numbers of words in the names that begin with it.
        self._lengths = defaultdict[str, set[int]](set)
        for name in owner:
            first, *others = name.split(" ")
            self._lengths[first].add(1 + len(others))

    def find(self, text: str) -> tuple[int, ...]:
        """Indices of the categories that `text` names, ascending."""
        return self.read(text)[0]

    def read(self, text: str) -> tuple[tuple[int, ...], str]:
        """The result of `find`, and `text` with each name replaced by one word ("thingdog")."""
        text = visible(text)
        named = list(self._named(text))
        for _, start, end in reversed(named):
            letters = re.sub(r"[^a-z]", "", text[start:end].lower())
            text = f"{text[:start].rstrip('_')}thing{letters}{text[end:].lstrip('_')}"
        return tuple(sorted({category for category, _, _ in named})), text

    def _named(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Each named category with the start and end of its name in the text."""
        tokens = [
            _Token(match.group(), folded(match.group()), match.start(), match.end())
            for match in _TOKEN.finditer(text)
        ]
        places = list(self._places([token.word for token in tokens]))
        tags: list[str] = []  # of all tokens, computed when first needed
        for category, first, last in places:
            before = tokens[first - 1].word if first else "the"
            after = tokens[last + 1].word if last + 1 < len(tokens) else "."
            if before not in _BEFORE_NOUN or after not in _AFTER_NOUN:
                tags = tags or _tags(text, tokens, [(first, last) for _, first, last in places])
                if not _is_named(tokens, tags, first, last):
                    continue
            yield category, tokens[first].start, tokens[last].end

    def _places(self, words: list[str]) -> Iterator[tuple[int, int, int]]:
        """Each category with the positions of the first and last word of its name."""
        position = 0
        while position < len(words):
            length, category = self._longest(words, position)
            if category is not None:
                yield category, position, position + length - 1
            position += length

    def _longest(self, words: list[str], start: int) -> tuple[int, int | None]:
        first = words[start]
        lengths = {*self._lengths.get(first, ()), *self._lengths.get(singular(first), ())}
        for length in sorted(lengths, reverse=True):
            name = words[start : start + length]
            spellings = [" ".join(name), _singular_head(name)]
            if words[start + length : start + length + 1] == ["of"]:
                spellings.reverse()  # "two glasses of wine" are not spectacles
            for spelling in spellings:
                if spelling in self._owner:
                    return len(name), self._owner[spelling]
        return 1, None


def _tags(text: str, tokens: Sequence[_Token], names: Sequence[tuple[int, int]]) -> list[str]:
    """The part of speech of each token.

    Hyphenated words are tagged as one word. Names of several words and names that are not English
    words are tagged as "thing".
    """
    things = {
        first: last
        for first, last in names
        if first < last or not parts_of_speech(tokens[first].word)
    }
    words, lengths, start = [], [], 0
    while start < len(tokens):
        end = things.get(start, start)
        if start in things:
            words.append("thing" if singular(tokens[end].word) == tokens[end].word else "things")
        else:
            while end + 1 < len(tokens) and text[tokens[end].end] in _HYPHENS:
                end += 1
            words.append(text[tokens[start].start : tokens[end].end])
        lengths.append(end + 1 - start)
        start = end + 1
    tagged = zip(tag_words(words), lengths, strict=True)
    return [tag for tag, length in tagged for _ in range(length)]


def _is_named(tokens: Sequence[_Token], tags: Sequence[str], first: int, last: int) -> bool:
    """Whether the words from `first` to `last` name an object rather than describe another one."""
    token, tag = tokens[last], tags[last]
    before = tags[first - 1] if first else ""
    after = tags[last + 1] if last + 1 < len(tags) else ""
    if after.startswith("NN"):
        part = singular(tokens[last + 1].word)
        if part in _CUTS:
            return True
        if not tag.startswith(("AJ", "VVG")):
            is_part = part in _PARTS and token.word not in _MATERIALS
            return is_part or (tag == "NN1" and may_be_verb(tokens[last + 1].word, tags, last + 1))
    if first < last or is_noun(token.word, tag):
        # "Turkey", but "a Labrador".
        proper = tag == "NP0" and first == last and before and token.text[0].isupper()
        return not proper or before.startswith(("AT", "DT", "DP", "AJ", "CR"))
    # "The small saw stands", but "an orange and white cat".
    mistaken = tag in ("VVB", "VVD", "VVI") and before.startswith("AJ")
    determined = mistaken or before.startswith(("AT", "DP"))
    return determined and not after.startswith(("AJ", "CJ", "NN", "PUN"))


def _written(name: str) -> str:
    return " ".join(folded(word) for word in _TOKEN.findall(visible(name)))


def _counted(name: str) -> str:
    """The form of a name that matches a text in singular and plural."""
    return _written(name_key(name))


def _singular_head(words: list[str]) -> str:
    head = head_position(words)
    return " ".join([*words[:head], singular(words[head]), *words[head + 1 :]])
