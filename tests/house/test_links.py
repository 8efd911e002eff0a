"""Every relative link of the written pages leads to a file, and its anchor to a heading there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("tests/**/*.md"),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def words(page: str) -> str:
    """The page without its code, in which brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", (ROOT / page).read_text()))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.*?) *$", FENCE.sub("", path.read_text()), re.MULTILINE):
        name = slug(heading)
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def broken(page: str) -> list[str]:
    wrong = []
    for target in LINK.findall(words(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text(
        "# One `x` thing\n## Twice\n## Twice\n[in](#one-x-thing) [again](b.md#twice-1) `[no](x)`"
    )
    (tmp_path / "b.md").write_text("# Twice\n# Twice\n[gone](c.md) [anchor](a.md#two) [out](https://a.org/b)")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert broken("a.md") == []
    assert broken("b.md") == ["c.md", "a.md#two"]
