"""README.md and docs/: filled by what was run, short, true without an address and with one."""

import ast
import contextlib
import importlib
import io
import re
import xml.etree.ElementTree as ET

import pytest

from tools import course_table, moving_picture, project, readme
from tools.project import ROOT, lessons

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in readme.PLACES.values()}
LIMIT = 8192  # bytes of the README, which a newcomer reads in a minute


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_are_what_was_run(name):
    assert readme.filled(PAGES[name]) == PAGES[name], "run `make readme`"


def test_every_place_stands_once_in_its_own_file():
    assert readme.PLACES.keys() == readme.FILLS.keys()
    for place, home in readme.PLACES.items():
        for name, text in PAGES.items():
            assert text.count(f"<!-- {place} -->") == (name == home), (place, name)


def test_a_place_that_nothing_fills_is_refused():
    with pytest.raises(KeyError, match="nothing"):
        readme.filled("<!-- nothing -->\n<!-- /nothing -->")


def test_the_readme_is_short_and_says_how_to_begin():
    text = PAGES["README.md"]
    assert len(text.encode()) <= LIMIT
    for words in ("make lab", "make test", "minilora lessons", "no GPU", "LICENSE", "CITATION.cff"):
        assert words in text


def _with_an_address(monkeypatch, address="https://github.com/somebody-with-a-name/minilora"):
    monkeypatch.setattr(project, "repository", lambda: address)


def test_without_an_address_no_button_leads_nowhere(monkeypatch):
    monkeypatch.setattr(project, "published", lambda: False)
    found = "".join((course_table.badges(), course_table.clouds(), course_table.lesson_table()))
    assert "https://" not in found and found.count("once the repository has an address") == 2


def test_with_an_address_each_lesson_has_a_button_and_the_readme_stays_short(monkeypatch):
    _with_an_address(monkeypatch)
    text = readme.filled(PAGES["README.md"])
    for path in lessons():
        assert re.search(
            rf"github/somebody-with-a-name/minilora/blob/v[\d.]+/notebooks/{path.name}\)", text
        )
    assert "OWNER" not in text and len(text.encode()) <= LIMIT
    assert all(host in course_table.clouds() for host in ("colab.", "kaggle.", "mybinder."))


def test_the_lessons_are_listed_with_their_minutes():
    table = course_table.lesson_table()
    for path in lessons():
        (row,) = [line for line in table.splitlines() if f"](notebooks/{path.name})" in line]
        assert f"| {course_table.reading_minutes(path)} |" in row
        assert course_table.reading_minutes(path) % 5 == 0
    assert len(re.findall(r"^\| \d\d \|", table, flags=re.M)) == len(course_table.TITLES)
    assert all(path.stem[3:] in course_table.TITLES for path in lessons())


def test_minutes_count_words_and_exercises_but_no_solution(tmp_path):
    cell = '{"cell_type": "%s", "metadata": {"tags": [%s]}, "source": ["%s"]}'
    words = "word " * 1000
    cells = [
        cell % ("markdown", "", words),
        cell % ("code", "", words),
        cell % ("code", '"exercise"', "def f(): ..."),
        cell % ("code", '"solution"', words * 9),
    ]
    path = tmp_path / "lesson.ipynb"
    path.write_text('{"cells": [' + ",".join(cells) + "]}", encoding="utf-8")
    assert course_table.reading_minutes(path) == 10  # 2,003 words and one exercise


def test_the_slider_is_what_the_script_draws_today():
    text = moving_picture.PICTURE.read_text(encoding="utf-8")
    assert text == moving_picture.drawn(), "run `python -m tools.moving_picture`"


def test_the_slider_is_small_still_text_and_without_script():
    text = moving_picture.PICTURE.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    root = ET.fromstring(text)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert root.tag.endswith("}svg") and "script" not in names and "foreignObject" not in names
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not any(name.lower().startswith("on") for name in attributes) and "href" not in text
    for rule in ("prefers-color-scheme:dark", "prefers-reduced-motion", "@keyframes"):
        assert rule in text


def test_the_slider_shows_each_position_in_turn():
    text = moving_picture.drawn()
    many = len(moving_picture.fits.BITS)
    assert [f'class="at at{n}"' in text for n in range(many + 1)] == [True] * many + [False]
    for n in range(many):
        rule = re.search(rf"@keyframes at{n}{{(.*?)}}}}", text)[1] + "}"
        stops = {float(k): int(v) for k, v in re.findall(r"([\d.]+)%{opacity:(\d)}", rule)}
        shown = [
            stops[max(k for k in stops if k <= t)]
            for t in (100 * (i + 0.5) / many for i in range(many))
        ]
        assert shown == [int(i == n) for i in range(many)]


def test_the_alt_text_has_the_numbers_of_the_picture():
    picture, alt = moving_picture.drawn(), moving_picture.alt()
    assert f"![{alt}](docs/slider.svg)" in PAGES["README.md"]
    for number in re.findall(r"[\d.]+ GB", alt):
        assert f": {number} on one {moving_picture.CARD}" in picture


# ------------------------------------------------------------------- what the pages say of the code


def _package_strings() -> list[str]:
    """The texts in the package's code, what is filled in shown as a zero byte."""
    found = []
    for path in (ROOT / "minilora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                found.append("".join(parts))
    return found


def _cells(page: str) -> list[str]:
    """The pieces of code in the first cell of each row of a page's tables."""
    cells = re.findall(r"^\| (.+?) \| ", page, flags=re.M)
    return [text for cell in cells for _, text in re.findall(r"(`+)(.+?)\1", cell)]


def test_every_line_of_troubleshooting_is_one_that_the_package_says():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    lines = _cells(page)
    others = ("Makefile", "tools/first_cell.py")
    strings = [*_package_strings(), *((ROOT / name).read_text(encoding="utf-8") for name in others)]
    assert len(lines) > 30
    for line in lines:
        parts = [part for part in line.split("…") if part.strip(" ;,.:()")]
        pattern = ".*?".join(re.escape(part) for part in parts)
        assert any(re.search(pattern, text, flags=re.S) for text in strings), line


def test_every_file_and_folder_that_architecture_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    page = page.replace("`parallel/` (to come)", "")
    folder = ""
    for line in page.splitlines():
        for name in re.findall(r"`([\w./]+(?:\.py|/))`", line):
            if name.endswith("/"):
                folder = name
            places = [ROOT / "minilora" / name, ROOT / name, ROOT / "minilora" / folder / name]
            assert any(place.exists() for place in places), f"{name} in: {line}"
    for room in sorted(path.name for path in (ROOT / "minilora").iterdir() if path.is_dir()):
        if room != "__pycache__":
            assert f"`{room}/`" in page, f"architecture.md does not say what {room}/ is"


def test_the_floors_of_architecture_are_those_that_the_test_holds():
    tree = ast.parse((ROOT / "tests" / "test_rooms.py").read_text(encoding="utf-8"))
    (wanted,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS"
    ]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = {}
    for number, names in re.findall(r"^\| +(\d+) \| (`.+?) \|", page, flags=re.M):
        for name in re.findall(r"`(\w+)(?:\.py|/)", names):
            assert told.setdefault(name, int(number)) == int(number)
    assert told == {
        room: number for number, rooms in enumerate(wanted) for room in rooms - {"__main__"}
    }


def _help(*command: str) -> str:
    main = importlib.import_module("minilora.cli.main")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main.main([*command, "--help"]) == 0
    return out.getvalue()


def _helps() -> dict[str, str]:
    return {name: _help(name) for name in importlib.import_module("minilora.cli.main").COMMANDS}


def test_every_command_and_option_in_the_pages_exists():
    helps = _helps()
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert {name for name in re.findall(r"^\| `minilora (\w+)`", page, flags=re.M)} == set(helps)
    texts = (_help(), *helps.values())
    options = {option for text in texts for option in re.findall(r"--[a-z][\w-]*", text)}
    for name in ("README.md", "docs/cli.md", "docs/budget.md", "docs/troubleshooting.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for command, rest in re.findall(r"^ {4}minilora (\w+)(.*)$", text, flags=re.M):
            assert command in helps, f"{name}: minilora {command}"
            for option in re.findall(r"--[a-z][\w-]*", rest):
                assert option in helps[command], f"{name}: minilora {command} {option}"
        for option in re.findall(r"`(--[a-z][\w-]*)", text):
            assert option in options, f"{name}: {option}"


def test_every_extra_and_pin_in_the_pages_is_the_projects():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras = set(project.pyproject()["project"]["optional-dependencies"])
    assert {name for name in re.findall(r"^\| `(\w+)` \|", page, flags=re.M)} <= extras
    pin = re.search(r"^TORCH := (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    for text in (page, workflow):
        assert set(re.findall(r"torch==[\d.]+", text)) == {pin}
    command = 'pip install -c constraints.txt -e ".[notebooks,hub,test]"'
    assert command in page and command in workflow


def test_the_version_and_the_citation_agree():
    yaml = pytest.importorskip("yaml")
    version = importlib.import_module("minilora").__version__
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == version and cited["license"] == "MIT" and cited["authors"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    wheel = re.findall(r"minilora-([\d.]+)-py3", PAGES["README.md"])
    assert set(wheel) <= {version}


def test_workflows_and_forms_are_yaml_and_cover_the_systems():
    yaml = pytest.importorskip("yaml")
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]:
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path.name
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    pythons = [job["strategy"]["matrix"]["python"] for job in jobs.values()]
    assert pythons == [["3.11", "3.12", "3.13"]] * 2
    assert jobs["linux"]["steps"][-1]["run"] == ".ci/run"
    assert jobs["others"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
