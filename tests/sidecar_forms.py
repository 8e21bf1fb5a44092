"""XMP as other programs write it, and a reader and writer of it that are not ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LR = "http://ns.adobe.com/lightroom/1.0/"
XMP = "http://ns.adobe.com/xap/1.0/"
DARKTABLE = "http://darktable.sf.net/"
SUBJECT, HIERARCHY, RATING = f"{{{DC}}}subject", f"{{{LR}}}hierarchicalSubject", f"{{{XMP}}}Rating"

# By the program that writes like this. Each has the keywords `beach` and `Tom & Ann`, and a rating.
PROGRAMS = {
    "darktable": """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="4"
   darktable:xmp_version="5"
   darktable:history_end="1">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>beach</rdf:li>
     <rdf:li>Tom &amp; Ann</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="rawprepare"
      darktable:params="gz02eJ>7/A="/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
""",
    "digiKam": """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:digiKam="http://www.digikam.org/ns/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   digiKam:PickLabel="0"
   xmp:Rating="4">
   <digiKam:TagsList>
    <rdf:Seq>
     <rdf:li>Places/beach</rdf:li>
    </rdf:Seq>
   </digiKam:TagsList>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Places|beach</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>beach</rdf:li>
     <rdf:li>Tom &amp; Ann</rdf:li>
    </rdf:Bag>
   </dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""",
    "Lightroom": """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="4"
   crs:Exposure2012="+0.35">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>beach</rdf:li>
     <rdf:li>Tom &amp; Ann</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <crs:Look rdf:parseType="Resource">
    <crs:Name>Adobe Color</crs:Name>
   </crs:Look>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
""",
    "exiftool": """<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>

 <rdf:Description rdf:about=''
  xmlns:dc='http://purl.org/dc/elements/1.1/'>
  <dc:subject>
   <rdf:Bag>
    <rdf:li>beach</rdf:li>
    <rdf:li>Tom &amp; Ann</rdf:li>
   </rdf:Bag>
  </dc:subject>
 </rdf:Description>

 <rdf:Description rdf:about=''
  xmlns:xmp='http://ns.adobe.com/xap/1.0/'>
  <xmp:Rating>4</xmp:Rating>
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end='w'?>""",
    "compact": """<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-\
rdf-syntax-ns#"><r:Description xmlns:d="http://purl.org/dc/elements/1.1/" r:about="uuid:1" xmlns:x\
ap="http://ns.adobe.com/xap/1.0/" xap:Rating="4"><d:subject><r:Seq><r:li>beach</r:li><r:li
 xml:lang="x-default">Tom &#38; Ann</r:li></r:Seq></d:subject></r:Description></r:RDF>\
</x:xmpmeta>""",
    "qualified": """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <!-- by hand -->
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
    <dc:subject><rdf:Bag>
      <rdf:li rdf:parseType="Resource"><rdf:value>beach</rdf:value>
        <q:sure xmlns:q="urn:q/">yes</q:sure></rdf:li>
      <rdf:li><![CDATA[Tom & Ann]]></rdf:li>
    </rdf:Bag></dc:subject>
  </rdf:Description>
</rdf:RDF>""",
}


@dataclass
class Properties:
    """What a sidecar says: by `{namespace}name`, a text or a list of texts."""

    values: dict[str, str | list[str]] = field(default_factory=dict)

    def listed(self, name: str) -> list[str]:
        found = self.values.get(name, [])
        return [found] if isinstance(found, str) else found

    def set_list(self, name: str, items: list[str]) -> None:
        self.values.pop(name, None)
        if items:
            self.values[name] = items


def read_properties(content: bytes) -> Properties:
    """By Python's ElementTree; lists and texts only."""
    root = ElementTree.fromstring(content)
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")
    assert rdf is not None
    found = Properties()
    for description in rdf.findall(f"{{{RDF}}}Description"):
        for name, value in description.attrib.items():
            if not name.startswith(f"{{{RDF}}}"):
                found.values[name] = value
        for child in description:
            assert child.tag not in found.values, f"{child.tag} stands twice"
            if len(child):
                items = [
                    item.findtext(f"{{{RDF}}}value") or (item.text or "").strip()
                    for item in child[0]
                ]
                found.values[child.tag] = items
            else:
                found.values[child.tag] = child.text or ""
    return found


def write_properties(found: Properties, form: str) -> bytes:
    """As a program might write them: `attributes`, `elements`, `reversed` or `utf-16`."""
    names = list(found.values)
    if form in ("reversed", "utf-16"):
        names = names[::-1]
    spaces = {f"n{i}": uri for i, uri in enumerate(sorted({n[1:].split("}")[0] for n in names}))}
    prefix = {uri: name for name, uri in spaces.items()}
    declared = "".join(f" xmlns:{name}={quoteattr(uri)}" for name, uri in spaces.items())

    def short(name: str) -> str:
        uri, _, local = name[1:].partition("}")
        return f"{prefix[uri]}:{local}"

    attributes, elements = "", []
    for name in names:
        value = found.values[name]
        if isinstance(value, list):
            bag = "Seq" if form == "reversed" else "Bag"
            items = "".join(f"\n     <rdf:li>{escape(item)}</rdf:li>" for item in value)
            elements.append(
                f"<{short(name)}>\n    <rdf:{bag}>{items}\n    </rdf:{bag}></{short(name)}>"
            )
        elif form == "attributes":
            attributes += f"\n    {short(name)}={quoteattr(value)}"
        else:
            elements.append(f"<{short(name)}>{escape(value)}</{short(name)}>")
    groups = [elements] if form == "attributes" else [[element] for element in elements]
    head = f"<rdf:Description rdf:about=''{declared}"
    inside = "".join(
        f"\n  {head}{attributes}>\n   " + "\n   ".join(group) + "\n  </rdf:Description>"
        for group in groups
    )
    line = "\r\n" if form == "elements" else "\n"
    text = (
        f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>\n <rdf:RDF xmlns:rdf='{RDF}'>{inside}\n "
        "</rdf:RDF>\n</x:xmpmeta>\n"
    ).replace("\n", line)
    return text.encode("utf-16" if form == "utf-16" else "utf-8")


FORMS = ("attributes", "elements", "reversed", "utf-16")


def version(file: Path) -> tuple[int, int]:
    """Differs once a file was written or replaced; reading it, which moves its atime, is none."""
    return file.stat().st_ino, file.stat().st_mtime_ns
