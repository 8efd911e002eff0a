"""What `make site` reads: every page in the navigation, modules that are there, text in the shape mkdocs takes."""

import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from docs import site_pages
from tests.house.test_packaging import requirements

ROOT = Path(__file__).parents[2]


def test_the_navigation_has_every_page_once():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = [page for section in settings["nav"] for pages in section.values() for page in pages]
    written = {p.name for p in (ROOT / "docs").glob("*.md")}
    made = {f"reference/{name}.md" for name in site_pages.REFERENCE} | {site_pages.CONTRIBUTING}
    assert sorted(named) == sorted(written | made)


def test_the_reference_names_modules_that_are_there():
    for module in (m for modules in site_pages.REFERENCE.values() for m in modules):
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), module


def test_the_pins_are_within_the_extra():
    pinned = {
        r.name.lower(): r
        for r in map(Requirement, re.findall(r"^\w.*", (ROOT / "docs/requirements.txt").read_text(), re.M))
    }
    for wanted in [r for r in requirements("docs") if r not in requirements()]:
        (version,) = pinned[wanted.name.lower()].specifier
        assert wanted.specifier.contains(version.version), wanted


def test_aligned_parameters_become_a_list():
    text = "What it does.\n\nname  what it is,\n      said further\nlow, high  a range\n\nThe end."
    assert site_pages.listed(text).splitlines() == [
        "What it does.", "", "- `name`: what it is,", "    said further", "- `low, high`: a range", "",
        "The end.",
    ]  # fmt: skip


def test_links_that_leave_the_folder_are_told_as_paths():
    text = "[b](b.md#x) [out](../CONTRIBUTING.md) [../notebooks](../notebooks) [card](../data/CARD.md) [web](https://a.org)"
    assert site_pages.inside(text, "a.md") == (
        "[b](b.md#x) [out](contributing.md) `notebooks` card (`data/CARD.md`) [web](https://a.org)"
    )


def test_what_belongs_to_an_item_is_four_spaces_in():
    text = "1. one\n\n   ```json\n   {}\n   ```\n\n2. two\n\n- a\n  more\n\n```\n- code\n  kept\n```\n  kept"
    assert site_pages.indented(text) == (
        "1. one\n\n    ```json\n    {}\n    ```\n\n2. two\n\n- a\n    more\n\n```\n- code\n  kept\n```\n  kept\n"
    )
