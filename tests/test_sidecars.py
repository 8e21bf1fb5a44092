"""XMP sidecars: what other programs write is read, and no byte of it changes but for our tags."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from sidecar_forms import (
    FORMS,
    HIERARCHY,
    PROGRAMS,
    RATING,
    RDF,
    SUBJECT,
    Properties,
    read_properties,
    version,
    write_properties,
)

from prompt_tuning.sidecars.editing import apply, tagged, untagged
from prompt_tuning.sidecars.keywords import keyword, path, paths_of
from prompt_tuning.sidecars.merge import (
    Keywords,
    Suggestion,
    merge,
    our_paths,
    ours,
    rejected,
    users,
)
from prompt_tuning.sidecars.packet import Packet
from prompt_tuning.sidecars.record import Record

DOG_AND_CAT = {"dog": Suggestion(0.9, "animals|dog"), "cat": Suggestion(0.5, "animals|cat")}
CAR = {"car": Suggestion(0.7, "traffic|car")}


def tag(content: bytes | None, suggestions: dict[str, Suggestion], version: str = "v1") -> bytes:
    new, _ = tagged(content, version, suggestions)
    assert new is not None
    return new


def flat(content: bytes) -> list[str]:
    """By the reader that is not ours."""
    return read_properties(content).listed(SUBJECT)


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "crlf")


def encoded(text: str, encoding: str) -> bytes:
    if encoding == "crlf":
        return text.replace("\n", "\r\n").encode()
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_programs_write_is_tagged_and_comes_back_byte_for_byte(
    program: str, encoding: str
) -> None:
    before = encoded(PROGRAMS[program].replace('encoding="UTF-8"', ""), encoding)
    with_tags = tag(before, DOG_AND_CAT)
    found = read_properties(with_tags)
    assert found.listed(SUBJECT) == ["beach", "Tom & Ann", "dog", "cat"]
    assert found.values[RATING] == "4"
    assert found.listed(HIERARCHY)[-2:] == ["animals|dog", "animals|cat"]
    assert users(Packet(with_tags).keywords) == ("beach", "Tom & Ann")
    # Our own text apart, it is the same text in the same order.
    assert tagged(with_tags, "v1", DOG_AND_CAT) == (with_tags, [])
    again, changed = tagged(with_tags, "v2", CAR)
    assert changed == ["+car", "−dog", "−cat"]
    assert again is not None and flat(again) == ["beach", "Tom & Ann", "car"]
    assert untagged(with_tags) == (before, ["−dog", "−cat"])
    assert untagged(again) == (before, ["−car"])
    assert untagged(before) == (before, [])


ODDITIES = b"""
<rdf:li>dog</rdf:li>
<rdf:li/>
<rdf:li> dog </rdf:li>
<rdf:li xml:lang='de'>cat</rdf:li>
<rdf:li rdf:resource='x'/>
<dc:subject/>
<dc:subject>q</dc:subject>
<!-- > -->
<![CDATA[<x>]]>
<?pi > ?>
<rdf:Description/>
<rdf:Description xmlns:dc='http://purl.org/dc/elements/1.1/' dc:subject='zebra'/>
text
""".split(b"\n")


def test_whatever_stands_around_is_refused_or_kept_byte_for_byte() -> None:
    """Odd things at random places; an empty one is the end of a line."""
    draw = random.Random(0)
    texts = [text.encode() for text in PROGRAMS.values()]
    kept = 0
    for _ in range(300):
        content = draw.choice(texts)
        for _ in range(draw.randrange(1, 4)):
            at = content.find(b">", draw.randrange(len(content))) + 1
            content = content[:at] + (draw.choice(ODDITIES) or b"\r\n") + content[at:]
        try:
            with_tags = tag(content, DOG_AND_CAT)
        except ValueError:
            continue
        kept += 1
        assert users(Packet(with_tags).keywords) == users(Packet(content).keywords)
        assert tagged(with_tags, "v1", DOG_AND_CAT) == (with_tags, [])
        assert untagged(with_tags)[0] == content
    assert kept > 100


@pytest.mark.parametrize(
    ("old", "attribute"),
    [
        ("<dc:subject><rdf:Bag/></dc:subject>", ""),
        ("<dc:subject/>", 'dc:title="t"'),
        ("<dc:subject>beach</dc:subject>", 'dc:title="t"'),
        ("<dc:subject><rdf:Alt><rdf:li>beach</rdf:li></rdf:Alt></dc:subject>", ""),
        ("", ""),
        ("", 'dc:title="t"'),
        ("", 'dc:subject="sand"'),
    ],
)
def test_odd_forms_of_the_list(old: str, attribute: str) -> None:
    """A tool may write no list, an empty one, or one text; what is the user's stays."""
    text = (
        f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" {attribute}>{old}</rdf:Description></rdf:RDF>'
    ).encode()
    theirs = [name for name in ("beach", "sand") if name.encode() in text]
    with_tags = tag(text, DOG_AND_CAT)
    assert sorted(flat(with_tags)) == sorted([*theirs, "dog", "cat"])
    without, _ = untagged(with_tags)
    assert without is not None
    assert flat(without) == theirs
    assert (b'dc:title="t"' in without) == ("title" in attribute)
    assert b"datafree" not in without


def test_an_empty_packet_takes_tags() -> None:
    for text in (
        f"<rdf:RDF xmlns:rdf='{RDF}'/>",
        f"<RDF xmlns='{RDF}'></RDF>",
        f"<x:xapmeta xmlns:x='adobe:ns:meta/'>\n<RDF xmlns='{RDF}'/>\n</x:xapmeta>",
    ):
        assert flat(tag(text.encode(), DOG_AND_CAT)) == ["dog", "cat"]


def test_another_encoding_is_kept() -> None:
    text = PROGRAMS["darktable"].replace("beach", "Köln").replace("UTF-8", "iso-8859-1")
    before = text.encode("iso-8859-1")
    with_tags = tag(before, {"犬": Suggestion(0.5)})
    assert flat(with_tags) == ["Köln", "Tom & Ann", "犬"]
    assert untagged(with_tags)[0] == before


def test_a_file_of_ours_has_only_tags_and_goes_whole() -> None:
    content = tag(None, DOG_AND_CAT)
    assert read_properties(content).listed(SUBJECT) == ["dog", "cat"]
    assert untagged(content) == (None, ["−dog", "−cat"])
    assert tagged(None, "v1", {}) == (None, [])  # nothing to say
    rated = content.replace(b'rdf:about=""', b'rdf:about="" xmlns:e="urn:e/" e:stars="5"')
    left, _ = untagged(rated)
    assert left is not None
    assert read_properties(left).values == {"{urn:e/}stars": "5"}
    commented = content.replace(b"<rdf:RDF", b"<!-- mine --><rdf:RDF")
    assert untagged(commented)[0] is not None
    # No tag is left, but what the user took out is remembered.
    emptied = content.replace(b"<rdf:li>dog</rdf:li>", b"").replace(b"<rdf:li>cat</rdf:li>", b"")
    again = tag(emptied, DOG_AND_CAT)
    assert flat(again) == []
    assert rejected(Packet(again).keywords) == ("cat", "dog")
    assert untagged(again)[0] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not XMP"),
        (b"no xml", "not XMP"),
        (PROGRAMS["darktable"].encode()[:-20], "not XMP"),
        (b"<html><body/></html>", "not XMP"),
        (PROGRAMS["darktable"].replace("rdf:RDF", "rdf:Rdf").encode(), "not XMP"),
        (b"<!DOCTYPE x [<!ENTITY e 'x'>]><rdf:RDF xmlns:rdf='%s'/>" % RDF.encode(), "DOCTYPE"),
        (PROGRAMS["darktable"].replace("beach", "Köln").encode("latin-1"), "not XMP"),
        (PROGRAMS["Lightroom"].replace("<rdf:li>beach", "<rdf:li>&beach;").encode(), "not XMP"),
        (
            PROGRAMS["Lightroom"].replace("<dc:subject>", "<dc:subject><dc:odd/>").encode(),
            "edited safely",
        ),
        (b"<a>" * 10_000 + b"</a>" * 10_000, "nested"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_xmp_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tagged(content, "v1", DOG_AND_CAT)


def test_names_that_xml_and_hierarchies_cannot_hold() -> None:
    assert keyword("\x00\x1b[31m|\ud800") == "[31m-"
    assert keyword("\n") == ""
    assert path(["a|b", "a|b", "c/d"]) == "a-b|c-d"
    assert path(["", "x", ""]) == "x"
    assert paths_of({"a": {"b": ["c|d"]}}) == {"c|d": "a|b|c-d"}
    hostile = keyword("</rdf:li><x a=\"&'>]]>")
    content = tag(None, {hostile: Suggestion(0.5, path(["<", hostile]))})
    assert flat(content) == [hostile]
    assert Packet(content).keywords.paths == (f"<|{hostile.replace('/', '-')}",)


# The rules of the merge, one by one.


def found(*names: str, record: Record | None = None, paths: tuple[str, ...] = ()) -> Keywords:
    return Keywords(names, paths, record)


def written(**tags: float) -> Record:
    return Record("v1", tags, tuple(f"animals|{name}" for name in tags))


def merged(keywords: Keywords, suggestions: dict[str, Suggestion]) -> Record:
    record = merge(keywords, "v2", suggestions, created=False)
    assert record is not None
    return record


def test_a_new_artifact_replaces_ours_only() -> None:
    before = found("beach", "dog", paths=("animals|dog",), record=written(dog=0.9))
    record = merged(before, CAR)
    assert (dict(record.tags), record.paths, record.artifact) == (
        {"car": 0.7},
        ("traffic|car",),
        "v2",
    )
    assert users(before) == ("beach",)


def test_what_the_user_took_out_stays_out() -> None:
    record = merged(found("cat", record=written(dog=0.9, cat=0.8)), DOG_AND_CAT)
    assert set(record.tags) == {"cat"}
    assert record.rejected == ("dog",)
    later = merged(found("cat", record=record), {"Dogs": Suggestion(0.9)})
    assert (set(later.tags), later.rejected) == (set(), ("dog",))
    # Put back, it is the user's. Taken out again, it is out.
    back = found("dog", record=later)
    assert (users(back), rejected(back), ours(back)) == (("dog",), (), ())
    again = merged(back, DOG_AND_CAT)
    assert set(again.tags) == {"cat"}
    assert "dog" not in merged(found("cat", record=again), DOG_AND_CAT).tags


def test_what_the_user_has_is_not_written_beside_it() -> None:
    record = merged(found("Dogs"), DOG_AND_CAT)
    assert set(record.tags) == {"cat"}
    assert record.agreed == ("dog",)
    # The user's own keyword, taken out: the artifact does not bring it back.
    assert "dog" not in merged(found("cat", record=record), DOG_AND_CAT).tags


def test_without_our_record_all_is_the_users() -> None:
    assert users(found("dog", "cat")) == ("dog", "cat")
    assert merge(found("dog"), "v1", {}, created=False) is None


def test_the_hierarchy_follows_the_same_rules() -> None:
    base = written(dog=0.9, cat=0.8)
    # A path that the user took out, while the keyword stays.
    record = merged(found("dog", "cat", paths=("animals|cat",), record=base), DOG_AND_CAT)
    assert (set(record.tags), record.paths) == ({"dog", "cat"}, ("animals|cat",))
    assert record.unfiled == ("dog",)
    # A path of the user's own makes the keyword the user's; both stay.
    filed = found("dog", "cat", paths=("Pets|dog", "animals|dog", "animals|cat"), record=base)
    assert users(filed) == ("dog",)
    assert ours(filed) == ("cat",)
    assert our_paths(filed) == ("animals|dog", "animals|cat")
    assert set(merged(filed, DOG_AND_CAT).tags) == {"cat"}
    # Without the keyword, our path alone does not say that it stands.
    assert rejected(found("cat", paths=("animals|dog",), record=base)) == ("dog",)


def test_merging_twice_changes_nothing_and_order_of_artifacts_does_not_matter() -> None:
    draw = random.Random(0)
    names = ["dog", "Dog", "cat", "car", "beach", "tree"]

    def some() -> list[str]:
        return draw.sample(names, draw.randrange(len(names)))

    for _ in range(300):
        record = Record("v0", dict.fromkeys(some(), 0.5), (), tuple(some()), tuple(some()))
        before = found(*some(), record=draw.choice([None, record]))
        one = merge(before, "v1", {n: Suggestion(0.25, f"x|{n}") for n in some()}, False)
        theirs = [name for name in before.flat if name not in ours(before)]
        now = found(*theirs, *(one.tags if one else ()), paths=one.paths if one else (), record=one)
        last = {n: Suggestion(0.75, f"y|{n}") for n in some()}
        two, direct = merge(now, "v2", last, False), merge(before, "v2", last, False)
        # A run in between leaves no trace, but in what it agreed with the user about.
        assert (dict(two.tags) if two else {}) == (dict(direct.tags) if direct else {})
        assert users(now) == users(before)
        after = found(
            *theirs, *(two.tags if two else ()), paths=two.paths if two else (), record=two
        )
        assert merge(after, "v2", last, False) == two


def test_a_record_that_was_changed_is_not_believed() -> None:
    content = tag(tag(None, DOG_AND_CAT).replace(b"<rdf:li>dog</rdf:li>", b""), DOG_AND_CAT)
    assert rejected(Packet(content).keywords) == ("dog",)
    forged = content.replace(b"<rdf:li>0.5000 cat", b"<rdf:li>0.5000 beach")
    keywords = Packet(forged).keywords
    assert users(keywords) == ("cat",)
    assert rejected(keywords) == ("dog",)  # this errs on the safe side
    assert flat(tag(forged, {**DOG_AND_CAT, **CAR})) == ["cat", "car"]
    assert untagged(forged)[0] is not None


# Random histories of a user, other programs and our runs.

WORDS = ("dog", "Dog", "cat", "car", "tree", "beach", "Tom & Ann")
FOREIGN = "{urn:other/}note"


class Photo:
    """A sidecar, and what its user would say about it."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.content: bytes | None = None
        self.forget()
        self.others: dict[str, str | list[str]] = {}  # rating, foreign namespace
        self.users_paths: list[str] = []
        self.history: list[str] = []

    def forget(self) -> None:
        self.theirs: list[str] = self.present()
        self.ours: dict[str, str] = {}  # tags of our last run, and their paths
        self.agreed: set[str] = set()
        self.refused: set[str] = set()
        self.unfiled: set[str] = set()
        self.created = False

    def read(self) -> Properties:
        return read_properties(self.content) if self.content else Properties()

    def present(self) -> list[str]:
        return self.read().listed(SUBJECT)

    def write(self, properties: Properties) -> None:
        self.content = write_properties(properties, self.draw.choice(FORMS))

    def user_edits(self) -> None:
        properties = self.read()
        words = properties.listed(SUBJECT)
        match self.draw.choice(
            ["add", "remove", "remove", "rate", "note", "file", "unfile", "save"]
        ):
            case "add":
                word = self.draw.choice(WORDS)
                self.history.append(f"user adds {word}")
                if word not in words:
                    words = [*words, word]
                    # One that we had also written cannot be told from ours.
                    self.theirs += [word] if word not in self.ours else []
            case "remove" if words:
                word = self.draw.choice(words)
                self.history.append(f"user removes {word}")
                words = [one for one in words if one != word]
                self.theirs = [one for one in self.theirs if one != word]
            case "rate":
                self.others[RATING] = properties.values[RATING] = str(self.draw.randrange(6))
            case "note":
                self.others[FOREIGN] = properties.values[FOREIGN] = f"note {self.draw.random()} <&"
            case "file":
                place = self.draw.choice(["Places|home", "Places|work", "Pets|dog"])
                self.history.append(f"user files {place}")
                if place not in self.users_paths:
                    self.users_paths.append(place)
                    properties.set_list(HIERARCHY, [*properties.listed(HIERARCHY), place])
            case "unfile":
                self.history.append("user unfiles dogs")
                self.users_paths = [p for p in self.users_paths if "|dog" not in p]
                properties.set_list(
                    HIERARCHY, [p for p in properties.listed(HIERARCHY) if "|dog" not in p]
                )
            case _:
                self.history.append("saved by another program")
        self.draw.shuffle(words)
        properties.set_list(SUBJECT, words)
        if properties.values or self.content:
            self.write(properties)

    def other_accidents(self) -> None:
        if self.draw.random() < 0.5:
            self.history.append("deleted")
            self.content = None
            self.others, self.users_paths = {}, []
            self.forget()
        elif self.content:
            self.history.append("our namespace dropped")
            properties = self.read()
            properties.values = {n: v for n, v in properties.values.items() if "datafree" not in n}
            self.users_paths = properties.listed(HIERARCHY)
            self.write(properties)
            self.forget()

    def filed(self) -> set[str]:
        """The labels that the user has in the hierarchy."""
        return {path.split("|")[1] for path in self.users_paths}

    def adopt(self) -> None:
        """A tag of ours that the user filed is the user's."""
        for word in self.filed() & {*self.ours} & {*self.present()}:
            self.theirs += [word] if word not in self.theirs else []

    def our_run(self) -> None:
        group = self.draw.choice(["animals", "things"])
        tags = self.draw.sample(["dog", "cat", "car", "tree"], self.draw.randrange(5))
        version = self.draw.choice(["v1", "v2"])
        self.history.append(f"run {version} {tags}")
        self.adopt()
        flat = {word.lower() for word in self.present()}
        present = flat | self.filed()
        paths = self.read().listed(HIERARCHY)
        gone = {w for w in (*self.ours, *self.agreed) if w not in present}
        self.unfiled |= {w for w in self.ours if w in flat and self.ours[w] not in ("", *paths)}
        self.refused |= gone
        self.created = self.content is None or self.created
        theirs = {word.lower() for word in self.theirs} | self.filed()
        self.agreed = {w for w in (*self.agreed, *tags) if w in theirs}
        self.ours = {
            w: "" if w in self.unfiled else f"{group}|{w}"
            for w in tags
            if w not in theirs and w not in self.refused
        }
        suggested = {w: Suggestion(self.draw.random(), f"{group}|{w}") for w in tags}
        self.content, _ = tagged(self.content, version, suggested)
        assert tagged(self.content, version, suggested) == (self.content, []), "not finished"
        if self.content is None:
            self.created = False

    def our_removal(self) -> None:
        self.history.append("untag")
        self.adopt()
        created = self.created
        self.content, _ = untagged(self.content)
        if created:  # gone if nothing of the user's is in it
            assert (self.content is None) == (not self.read().values)
        self.ours, self.agreed, self.refused, self.unfiled = {}, set(), set(), set()
        self.created = False
        assert b"datafree" not in (self.content or b"")

    def check(self, after_ours: bool) -> None:
        properties = self.read()
        words, paths = properties.listed(SUBJECT), properties.listed(HIERARCHY)
        for name, value in self.others.items():
            assert properties.values[name] == value
        assert set(self.users_paths) <= set(paths)
        assert set(self.theirs) <= set(words)
        if after_ours:
            assert sorted(words) == sorted([*self.theirs, *self.ours])
            assert sorted(paths) == sorted([*self.users_paths, *filter(None, self.ours.values())])
            assert not self.refused & {*words} - {*self.theirs}
            if self.content:
                keywords = Packet(self.content).keywords
                assert set(users(keywords)) == {*self.theirs, *self.filed()}
                lower = {word.lower() for word in words}
                assert set(rejected(keywords)) == self.refused - lower - self.filed()


@pytest.mark.parametrize("seed", range(5))
def test_no_edit_is_lost_and_no_stale_tag_is_left(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(20):
        photo = Photo(draw)
        for _ in range(20):
            step = draw.choices(
                [photo.user_edits, photo.our_run, photo.our_removal, photo.other_accidents],
                [10, 7, 1, 1],
            )[0]
            try:
                step()
                photo.check(step in (photo.our_run, photo.our_removal))
            except Exception:
                print("\n".join(photo.history))
                raise


# On disk.


def edit_of(suggestions: dict[str, Suggestion]):  # type: ignore[no-untyped-def]
    return lambda content: tagged(content, "v1", suggestions)[0]


def test_a_sidecar_that_is_as_it_should_be_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg.xmp"
    assert apply(file, edit_of(DOG_AND_CAT))
    before = version(file)
    assert not apply(file, edit_of(DOG_AND_CAT))
    assert version(file) == before
    assert apply(file, lambda content: untagged(content)[0], dry_run=True)
    assert version(file) == before
    assert apply(file, lambda content: untagged(content)[0])
    assert list(tmp_path.iterdir()) == []


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.xmp", tmp_path / "a.jpg.xmp"
    real.write_text(PROGRAMS["digiKam"], "utf-8")
    real.chmod(0o640)
    link.symlink_to("real.xmp")
    assert apply(link, edit_of(CAR))
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert flat(real.read_bytes()) == ["beach", "Tom & Ann", "car"]
    real.unlink()
    with pytest.raises(ValueError, match=r"a\.jpg\.xmp: a link to a file that does not exist"):
        apply(link, edit_of(CAR))
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg.xmp"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.xmp"
    file.write_text(PROGRAMS["darktable"], "utf-8")
    file.chmod(0o444)
    with pytest.raises(ValueError, match=r"a\.xmp: read-only"):
        apply(file, edit_of(CAR))
    assert file.read_text("utf-8") == PROGRAMS["darktable"]
    with pytest.raises(ValueError, match=r"cannot be written \(File name too long"):
        apply(tmp_path / f"{'x' * 250}.xmp.xmp", edit_of(CAR))
    os.mkfifo(tmp_path / "b.xmp")
    with pytest.raises(ValueError, match=r"b\.xmp: not a file"):
        apply(tmp_path / "b.xmp", edit_of(CAR))
    with (tmp_path / "d.xmp").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match=r"d\.xmp: not XMP: 1,099,511,627,776 bytes"):
        apply(tmp_path / "d.xmp", edit_of(CAR))
    (tmp_path / "c.xmp").mkdir()
    with pytest.raises(ValueError, match=r"c\.xmp: not a file"):
        apply(tmp_path / "c.xmp", edit_of(CAR))
    longest = tmp_path / f"{'x' * 247}.jpg.xmp"
    assert apply(longest, edit_of(CAR))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match=r"a\.xmp: cannot be written \(Permission denied\)"):
        apply(tmp_path / "a.xmp", edit_of(CAR))
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("first", ["missing", "there"])
def test_a_sidecar_that_changes_while_we_write_keeps_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Another program saves a keyword after our text is on disk, before it takes its place."""
    file = tmp_path / "a.jpg.xmp"
    if first == "there":
        file.write_text(PROGRAMS["digiKam"], "utf-8")
    changed = PROGRAMS["digiKam"].replace("beach<", "harbour<").encode()
    saves = [changed, changed.replace(b"harbour<", b"castle<")]
    fsync = os.fsync

    def fsync_and_save(descriptor: int) -> None:
        fsync(descriptor)
        if saves and ".datafree-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            file.write_bytes(saves.pop(0))

    monkeypatch.setattr(os, "fsync", fsync_and_save)
    assert apply(file, edit_of(CAR))
    assert saves == []
    assert flat(file.read_bytes()) == ["castle", "Tom & Ann", "car"]
    assert [one.name for one in tmp_path.iterdir()] == ["a.jpg.xmp"]


def test_a_sidecar_that_never_stops_changing_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jpg.xmp"
    count = iter(range(1000))

    def edit(content: bytes | None) -> bytes | None:
        new = tagged(content, "v1", CAR)[0]
        stars = f'xmp:Rating="{next(count)}"'
        file.write_text(re.sub(r'xmp:Rating="\d+"', stars, PROGRAMS["darktable"]), "utf-8")
        return new

    with pytest.raises(ValueError, match=r"a\.jpg\.xmp: another program keeps changing it"):
        apply(file, edit)
    assert flat(file.read_bytes()) == ["beach", "Tom & Ann"]


def test_a_sidecar_that_is_half_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg.xmp"
    whole = PROGRAMS["darktable"].encode()
    file.write_bytes(whole[:300])
    calls = iter(range(10))

    def edit(content: bytes | None) -> bytes | None:
        if next(calls) == 0:
            file.write_bytes(whole)
        return tagged(content, "v1", CAR)[0]

    assert apply(file, edit)
    assert flat(file.read_bytes()) == ["beach", "Tom & Ann", "car"]


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_is_told_without_a_byte_order_mark(order: str) -> None:
    before = PROGRAMS["Lightroom"].encode(f"utf-16-{order}")
    with_tags = tag(before, CAR)
    assert users(Packet(with_tags).keywords) == ("beach", "Tom & Ann")
    assert untagged(with_tags)[0] == before
