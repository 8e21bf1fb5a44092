"""Parts of speech: whether a word is a noun in its sentence.

"I saw a dog" does not mention a saw, nor "an orange bus" an orange. The tagger is HanTa, in pure
Python, with its model and the tags of the British National Corpus (NN1, VVD, AJ0 …).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources

import lemminflect
from HanTa.HanoverTagger import HanoverTagger

from prompt_tuning.label_names import singular

# Differences of log-likelihoods.
_CLEARLY, _SELDOM, _RARELY, _HARDLY = 1.0, 3.0, 3.5, 5.0
_UNSEEN = -17.0  # log-likelihood of a tag that a word never has in the (small) corpus
_SINGULAR_DETERMINERS = frozenset("a an another each every one that this".split())
_SUBJECTS = frozenset("i he she we they who".split())
_DETERMINERS = ("AT", "DT", "DP", "CR")
_NOUNS = ("NN0", "NN1", "NN2", "UNC")
# After a noun, these are nouns rather than its verb: "train tracks in the desert".
_THINGS = frozenset(
    "bar bottle box branch cup house light rack shelter sign stall track wheel".split()
)
_VERBS = ("VVB", "VVI", "VVZ")
_FINITE = ("VVB", "VVZ", "VVD", "VB", "VH", "VD", "VM")


def tag_words(words: Sequence[str]) -> list[str]:
    """The tag of each word and punctuation mark of a sentence."""
    tags: list[str] = _tagger().tag_sent(words, taglevel=0)
    if tags[:1] == ["VVZ"] and "NOUN" in parts_of_speech(words[0]):
        tags[0] = "NN2"  # "Bears fish in the river."
    for i in range(1, len(tags)):
        if tags[i] in ("NN0", "NN1", "NN2") and "VERB" in parts_of_speech(words[i]):
            if _is_verb(words, tags, i):
                tags[i] = "VVZ" if tags[i] == "NN2" else "VVB"
        elif tags[i] in ("VVB", "VVI") and tags[i - 1] == "NN1":
            # The noun before it is not a subject: "at the bus stop".
            start = _start_of_phrase(tags, i - 1)
            if start and tags[start].startswith(_DETERMINERS) and tags[start - 1][:2] == "PR":
                tags[i] = "NN1"
    return tags


def _is_verb(words: Sequence[str], tags: Sequence[str], i: int) -> bool:
    """Whether the word at `i` is the verb of "the dog barks" rather than a plural noun."""
    if words[i - 1].lower() in _SUBJECTS:
        return True
    start = _start_of_phrase(tags, i - 1)
    after_noun = tags[i - 1] in _NOUNS
    if tags[i] != "NN2" and tags[i - 1] == "NN2":
        # A noun that describes another one is singular: "dog food", but "dogs bark".
        verb_follows = i + 1 < len(tags) and tags[i + 1].startswith(_FINITE)
        if _opens_clause(tags, start) and not verb_follows:
            return _likelier(words[i], _VERBS, _NOUNS) > -_HARDLY
    if tags[i] == "NN2" and after_noun and words[start].lower() in _SINGULAR_DETERMINERS:
        return True
    if any(tag.startswith(_FINITE) for tag in tags):
        return False
    if tags[i] == "NN2" and tags[i + 1 : i + 2] in (["AT0"], ["DPS"]):
        return True  # "The woman in red watches the dog."
    if tags[i] == "NN2":
        begins = start == 0 or tags[start - 1].startswith(("NN", "PUN", "CJ"))
        agrees = begins and tags[start].startswith(("AT", "DP")) and tags[i - 1] != "NN2"
    else:
        agrees = tags[i - 1] != "NN1" or "CJC" in tags[:i]
    return after_noun and agrees and _likelier(words[i], _VERBS, _NOUNS) > -_SELDOM


def may_be_verb(word: str, tags: Sequence[str], i: int) -> bool:
    """Whether the plural `word` at `i` may be the verb of the noun before it: "Dog barks at cat."

    This is possible only if the sentence has no other verb.
    """
    if tags[i] != "NN2" or singular(word) in _THINGS or any(t.startswith(_FINITE) for t in tags):
        return False
    start = _start_of_phrase(tags, i - 1)
    if not _opens_clause(tags, start) or tags[start].startswith(("CJ", "PUN")):
        return False
    ends = i + 1 == len(tags) or tags[i + 1].startswith(("AT0", "DPS", "PRP", "PUN"))
    likely = max(_likelier(form, _VERBS, _NOUNS) for form in (word, singular(word)))
    return ends and "VERB" in parts_of_speech(word) and likely > -_RARELY


def _opens_clause(tags: Sequence[str], start: int) -> bool:
    """Whether a noun phrase that starts at `start` can be a subject."""
    after = not start or tags[start - 1].startswith(("NN", "PUN", "CJ"))
    return after and not tags[start].startswith(("PR", "V"))


def _start_of_phrase(tags: Sequence[str], i: int) -> int:
    """The position where the noun phrase around `i` starts."""
    while i and tags[i].startswith((*_NOUNS, "AJ", "ORD", "VVN")):
        i -= 1
    return i


@lru_cache(maxsize=65536)
def parts_of_speech(word: str) -> frozenset[str]:
    """The possible parts of speech of an English word (NOUN, VERB, ADJ, ADV, AUX), else empty."""
    return frozenset(lemminflect.getAllLemmas(word))


@lru_cache(maxsize=65536)
def is_noun(word: str, tag: str) -> bool:
    """Whether `word` with `tag` has the meaning of a label with this name.

    Words that cannot be English nouns, or can be nothing else, match with any tag. A word that is
    mainly an adjective ("red") or a gerund ("cooking") matches as such too.
    """
    parts = parts_of_speech(word)
    if tag.startswith("N") or tag == "UNC" or "NOUN" not in parts or len(parts) == 1:
        return True
    if tag.startswith("AJ"):
        return _likelier(word, ("AJ0",), _NOUNS) > _CLEARLY
    return tag == "VVG"


@lru_cache(maxsize=65536)
def _likelier(word: str, these: tuple[str, ...], those: tuple[str, ...]) -> float:
    """The log-likelihood of a word having one of `these` tags, minus that of `those`."""
    likely = dict(_tagger().tag_word(word))
    return max(likely.get(tag, _UNSEEN) for tag in these) - max(
        likely.get(tag, _UNSEEN) for tag in those
    )


@cache
def _tagger() -> HanoverTagger:
    # With a bare name HanTa would look in the working directory first.
    tagger = HanoverTagger(str(resources.files("HanTa") / "morphmodel_en.pgz"))
    # HanTa does not cache the analysis of unknown words; this doubles its speed.
    tagger._tag_word = lru_cache(maxsize=65536)(tagger._tag_word)
    return tagger
