"""Every relative link in pages and in notebooks' text leads to a file, and to a heading in it."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tools.project import ROOT, lessons

LEFT_OUT = {"build", "dist", "runs", "node_modules", "site"}
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)  # https:, mailto:, data:


def pages(root: Path) -> list[Path]:
    """The Markdown files and notebooks under root, without folders that are made or hidden."""
    found = []
    for path in sorted([*root.rglob("*.md"), *root.rglob("*.ipynb")]):
        inside = path.relative_to(root).parts[:-1]
        hidden = any(part.startswith(".") and part != ".github" for part in inside)
        if not hidden and not LEFT_OUT & set(inside):
            found.append(path)
    return found


def prose(path: Path) -> str:
    """A page's text, or the text cells of a notebook, without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.M | re.S)
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; in notebooks JupyterLab's as well."""
    found: dict[str, int] = {}
    text = prose(path)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.M):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        if number:
            found[f"{slug}-{number}"] = 0
        if path.suffix == ".ipynb":
            found[plain.strip().replace(" ", "-")] = 0
    return {*found, *re.findall(r'\b(?:id|name)="([^"]+)"', text)}


def links(path: Path) -> list[str]:
    """The targets of a page's links and pictures that lead to a file or a heading."""
    text = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", prose(path), flags=re.S)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.M)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    found += re.findall(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", text, flags=re.M)
    found += re.findall(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"", text)
    return [target for target in found if not ELSEWHERE.match(target)]


def broken(path: Path) -> list[str]:
    """The targets of a page's links that lead nowhere."""
    wrong = []
    for target in links(path):
        file, _, anchor = target.partition("#")
        there = (path.parent / unquote(file)).resolve() if file else path
        dead = not there.exists()
        if not dead and anchor and there.suffix in (".md", ".ipynb"):
            dead = unquote(anchor) not in anchors(there)
        if dead:
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", pages(ROOT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path):
    assert not broken(path)


def test_the_pages_are_found():
    found = {path.relative_to(ROOT).as_posix() for path in pages(ROOT)}
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "data/base/README.md"} <= found
    assert {path.relative_to(ROOT).as_posix() for path in lessons()} <= found
    assert ".github/pull_request_template.md" in found and not any(
        ".venv" in name for name in found
    )
    assert sum(len(links(path)) for path in pages(ROOT)) > 40


def test_each_page_of_docs_can_be_reached_from_the_readme():
    waiting, reached = [ROOT / "README.md"], set()
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [
                (page.parent / t.partition("#")[0]).resolve() for t in links(page) if t[0] != "#"
            ]
    assert set((ROOT / "docs").glob("*.md")) <= reached


PAGE = """# A page

## Where it is: `here`, (and there)

[whole](other.md) [part](other.md#a-part) [own](#where-it-is-here-and-there) ![seen](picture.svg)
[far](https://example.org/none) `[no](link.md)` [twice](other.md#a-part-1) [ref]

    [code](nothing.md)

```
[code](nothing.md#at-all)
```

[ref]: other.md "title"
<img src="picture.svg" alt="seen">
"""
OTHER = "# Other\n\n## A part\n\ntext\n\n## A part\n"


@pytest.fixture
def page(tmp_path):
    (tmp_path / "other.md").write_text(OTHER, encoding="utf-8")
    (tmp_path / "picture.svg").write_text("<svg/>", encoding="utf-8")
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path / "page.md"


def test_a_sound_page_has_no_broken_link(page):
    assert len(links(page)) == 7 and not broken(page)


@pytest.mark.parametrize(
    "planted",
    [
        "[x](missing.md)",
        "[x](other.md#no-such-part)",
        "[x](#no-such-heading)",
        "[x](other.md#a-part-2)",
        "[x](other.md#A-part)",
        "![x](missing.png)",
        '<img src="missing.png">',
        '<a href="other.md#no-such-part">x</a>',
        "[x]: missing.md",
        "[x](folder/other.md)",
    ],
)
def test_a_planted_broken_link_is_seen(page, planted):
    page.write_text(f"{PAGE}\n{planted}\n", encoding="utf-8")
    assert len(broken(page)) == 1


def test_a_planted_broken_link_in_a_notebook_is_seen(tmp_path, page):
    text = ["# Title of it\n", "[a](other.md) [b](#Title-of-it) [c](other.md#none) [d](none.md)"]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": text},
        {"cell_type": "code", "metadata": {}, "source": ["x = '[e](none.md)'"]},
    ]
    notebook = tmp_path / "lesson.ipynb"
    notebook.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert broken(notebook) == ["other.md#none", "none.md"]
