"""The wheel is the course: installed where no repository is, it has data, lessons and results.

The environment is a new one, outside the repository. It sees the libraries of this one by a line in
a .pth file, so that nothing is downloaded; minilora itself comes from the wheel alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tools.project import ROOT, lessons

pytestmark = pytest.mark.slow

ALONE = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
ALONE |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "HF_HUB_OFFLINE": "1"}
LESSON = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell("print(minilora.__file__)"))
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[-1].text.strip())
"""


def call(*command, cwd):
    """Run a command away from the repository; what it prints. Its errors are the test's."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=ALONE, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(source: Path, target: Path) -> Path:
    """The wheel of a source folder, built without a network."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    call(sys.executable, "-m", "pip", "wheel", *quiet, "--wheel-dir", target, source, cwd=target)
    (wheel,) = target.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


NOT_COPIED = shutil.ignore_patterns(".venv*", ".git", "__pycache__", "runs", "build", "dist")
LEFT_BEHIND = (  # what programs leave in a folder that is worked in
    "notebooks/.ipynb_checkpoints/00-start-here-checkpoint.ipynb",
    "minilora/__pycache__/errors.cpython-311.pyc",
    "data/corpus/__pycache__/words.cpython-311.pyc",
    "data/base/.model.safetensors.abc.part",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository, so that nobody writes into it while it is packed."""
    folder = tmp_path_factory.mktemp("source") / "repository"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    for name in LEFT_BEHIND:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left behind")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of a new environment that has the wheel."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False)
    base = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=base))
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(libraries)))
    programs = Path(sysconfig.get_path("scripts", "venv", vars=base))
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    offline = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    call(*pip, "install", *offline, wheel, cwd=folder)
    return programs


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with nothing in it."""
    return tmp_path_factory.mktemp("anywhere")


def test_the_wheel_has_all_of_the_course_and_nothing_else(source, wheel):
    files, expected = contents(wheel), {}
    for part in ("minilora", "data", "notebooks", "benchmarks/results"):
        for path in (source / part).rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and name not in LEFT_BEHIND:
                packed = name if part == "minilora" else f"minilora/shipped/{name}"
                expected[packed] = path.read_bytes()
    assert "minilora/shipped/data/base/model.safetensors" in expected
    assert "minilora/quantize/__init__.pyi" in expected
    about = {name for name in files if name.startswith("minilora-")}
    assert all(".dist-info/" in name for name in about)
    assert files.keys() - about == expected.keys()
    assert all(files[name] == content for name, content in expected.items())


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    hatchling = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    call(*hatchling, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "source", filter="data")
    (unpacked,) = (tmp_path / "source").iterdir()
    assert {"tests", "tools", "Makefile", "constraints.txt"} <= {p.name for p in unpacked.iterdir()}
    (tmp_path / "again").mkdir()
    assert contents(build(unpacked, tmp_path / "again")) == contents(wheel)


def test_minilora_comes_from_the_wheel(installed, here):
    code = "import minilora, torch; print(minilora.__file__); print(torch.__file__)"
    ours, theirs = call(installed / "python", "-c", code, cwd=here).splitlines()
    assert Path(ours).is_relative_to(installed.parent)
    assert not Path(theirs).is_relative_to(installed.parent)  # this environment's


def test_lesson_00_runs_where_it_was_laid_out(installed, here):
    said = call(installed / "minilora", "lessons", "here", "--no-open", cwd=here)
    assert said.startswith(f"here: {len(lessons())} lessons laid out\n")
    assert {p.name for p in (here / "here").glob("*.ipynb")} == {p.name for p in lessons()}
    (first, *_) = sorted((here / "here").glob("00-*.ipynb"))
    ours = call(installed / "python", "-c", LESSON, first, cwd=here / "here").splitlines()[-1]
    assert Path(ours).is_relative_to(installed.parent)


def test_the_laid_out_lessons_link_to_each_other(installed, here):
    """What a lesson links to lies beside it, or is an address."""
    call(installed / "minilora", "lessons", "linked", "--no-open", cwd=here)
    for path in (here / "linked").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for target in re.findall(r"\]\(([^)#\s]+)", "".join(cell["source"])):
                    far = re.match(r"[a-z]+:", target)
                    assert far or (path.parent / target).exists(), f"{path.name}: {target}"


def test_a_model_is_fine_tuned_anywhere(installed, here):
    minilora, of = installed / "minilora", ("--model", "tiny", "--data", "extract")
    call(minilora, "finetune", *of, "--out", "run", cwd=here)
    said = call(minilora, "evaluate", *of, "--adapter", "run", cwd=here)
    assert float(re.search(r"exact match (\d\.\d+)", said)[1]) >= 0.9
