"""One source for dependencies, versions and addresses: whatever is written twice is compared
here.
"""

import re
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tools import environment, floors, project, readme

PROJECT = project.pyproject()
ALL = [Requirement(text) for text in environment.requirements(PROJECT)]
PAGES = [project.ROOT / "README.md", *sorted((project.ROOT / "docs").glob("*.md"))]
PINS = {
    environment.name_of(line).replace("_", "-"): Requirement(line)
    for line in (project.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
}


def _conda() -> tuple[dict, list[str]]:
    """environment.yml as {name: specifiers} and its pip lines."""
    written = yaml.safe_load((project.ROOT / "environment.yml").read_text(encoding="utf-8"))
    packages = [item for item in written["dependencies"] if isinstance(item, str)]
    (by_pip,) = [item["pip"] for item in written["dependencies"] if isinstance(item, dict)]
    return {
        environment.name_of(item): SpecifierSet(item[len(environment.name_of(item)) :])
        for item in packages
    }, by_pip


def test_environment_yml_says_what_pyproject_says():
    conda, by_pip = _conda()
    renamed = {
        "torch": "pytorch",
        "matplotlib": "matplotlib-base",
        "lazy-loader": "lazy_loader",
    }
    wanted = {renamed.get(r.name.lower(), r.name.lower()): r.specifier for r in ALL}
    for text in by_pip:
        if text != "-e .":
            conda[environment.name_of(text)] = Requirement(text).specifier
    assert conda.pop("python") == SpecifierSet(PROJECT["project"]["requires-python"])
    conda.pop("pip")
    assert conda == wanted
    assert "-e ." in by_pip


def test_environment_yml_is_freshly_made():
    assert (project.ROOT / "environment.yml").read_text(
        encoding="utf-8"
    ) == environment.environment(PROJECT)


@pytest.mark.parametrize("requirement", ALL, ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement):
    pin = PINS[requirement.name.lower().replace("_", "-")]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert requirement.specifier.contains(Version(exact.version))


def test_constraints_are_exact_and_belong_to_no_machine():
    for name, pin in PINS.items():
        assert [s.operator for s in pin.specifier] == ["=="], name
        assert "+" not in str(pin.specifier), (
            f"{name}: a local build such as +cpu exists on some machines only"
        )
    assert str(PINS["torch"].specifier) == "==2.13.0"


def test_torch_is_named_alike_wherever_it_is_installed():
    must = {"Makefile", "docs/install.md", "constraints.txt"}
    named = {}
    others = [*PAGES, *(project.ROOT / ".github").rglob("*.yml")]
    for path in [*must, *(p.relative_to(project.ROOT).as_posix() for p in others)]:
        text = (project.ROOT / path).read_text(encoding="utf-8")
        named[path] = set(re.findall(r"torch==([\w.]+)", text))
    assert must <= {path for path, versions in named.items() if versions}
    assert set().union(*named.values()) == {"2.13.0"}, named


def test_colab_can_install_it():
    """ipywidgets 8 as a must would be unsolvable on Colab, which has 7.7.1; its torch and NumPy
    must be within range as well.
    """
    ranges = {r.name: r.specifier for r in ALL}
    assert ranges["ipywidgets"].contains("7.7.1") and ranges["ipywidgets"].contains("8.1.9")
    assert ranges["torch"].contains("2.11.0") and ranges["numpy"].contains("2.1.3")


def test_the_floors_are_the_lower_bounds():
    """Each dependency of the package and its lessons, at the oldest version its range holds."""
    pins = [Requirement(text) for text in floors.pins(PROJECT)]
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["notebooks"], *extras["hub"]]
    ranges = {r.name: r.specifier for r in map(Requirement, wanted)}
    assert [pin.name for pin in pins] == list(ranges)
    for pin in pins:
        (exact,) = pin.specifier
        (lowest,) = [s for s in ranges[pin.name] if s.operator == ">="]
        left = PINS[floors.LEFT_AT_ITS_PIN].specifier
        assert exact.operator == "=="
        assert exact.version == lowest.version or (pin.name == "torch" and pin.specifier == left)


def test_a_dependency_without_a_floor_is_refused():
    extras = {"notebooks": [], "hub": ["peft<1"]}
    with pytest.raises(SystemExit, match="gives 'peft<1' no lower bound"):
        floors.pins({"project": {"dependencies": [], "optional-dependencies": extras}})


def test_the_floors_run_the_lessons_that_lean_on_libraries():
    numbers = [path.name[:2] for path in floors.chosen()]
    assert {"00", "02", "08", "10", "14"} <= set(numbers)


def test_every_dependency_says_what_it_is_for():
    lines = (project.ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for requirement in environment.requirements(PROJECT):
        (line,) = [line for line in lines if line.strip().startswith(f'"{requirement}"')]
        assert re.search(r"#\s+\S.{8,}", line), line


def test_the_version_has_one_home():
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __import__("minilora").__version__)


def test_no_file_names_a_machine_or_a_stranger():
    """No checkout folders or home folders in what is committed."""
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=project.ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone, so there is no list of committed files")
    forbidden = [
        re.compile(p) for p in (r"/wor" + r"k/", r"/home/\w+/", r"/Users/\w+/", r"/roo" + r"t/")
    ]
    for name in listed:
        path = project.ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".ipynb", ".txt", ".json", ".sh", "")
            and path.is_file()
            and path.stat().st_size < 2_000_000
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            found = [p.pattern for p in forbidden if p.search(text)]
            assert not found, f"{name} names {found}"


def test_the_repository_address_is_written_where_it_is_made():
    """In pyproject.toml, and in what `make parts` rewrites; a copy anywhere else would be forgotten
    when it is set.
    """
    owner = project.repository().removeprefix("https://github.com/")
    for path in PAGES:
        outside = path.read_text(encoding="utf-8")
        for place in readme.PLACES:
            outside = re.sub(rf"<!-- {place} -->.*?<!-- /{place} -->", "", outside, flags=re.S)
        assert owner not in outside, path.name
    for path in [
        *(project.ROOT / "tools").glob("*.py"),
        *(project.ROOT / "minilora").rglob("*.py"),
    ]:
        assert owner not in path.read_text(encoding="utf-8"), path.name
