"""docs/config.md is what the settings models say, and names all that a config may hold."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from orchestrator.config.reference import config_reference

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "config.md").read_text("utf-8")


def test_the_page_is_up_to_date() -> None:
    assert config_reference() == PAGE, (
        "run: python -m orchestrator.config.reference > docs/config.md"
    )


def test_every_link_leads_to_a_section() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[.,]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_every_field_of_our_configs_is_in_its_section() -> None:
    sections: dict[str, set[str]] = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        fields = set(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE))
        sections |= dict.fromkeys(heading.split(", "), fields)

    def check(place: str, raw: dict[str, object]) -> None:
        for name, value in raw.items():
            assert name in sections[place or "The run"] or (place, name) == ("", "sweep"), name
            inside = f"{place}.{name}" if place else name
            if isinstance(value, dict) and inside != "sweep.space":
                check(inside, value)

    for name in ("paper", "quickstart", "sweep", "laptop"):
        check("", yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text("utf-8")))


def test_defaults_are_those_of_the_run_and_not_of_the_part_alone() -> None:
    # Noise alone has neither; a run has noise of a relative length.
    assert re.search(r"^\| `relative` \| .* \| `0\.5` \|$", PAGE, re.MULTILINE)
