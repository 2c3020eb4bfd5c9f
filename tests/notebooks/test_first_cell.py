"""The first cell of every lesson, run as a kernel runs it, in a process that knows no minilora:
near a clone, with a server, without a network, with uploads. Whatever happens, it says one line.

The course that it finds is a small stand-in, so that a run takes a second; one test takes the real
one.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tools.lesson_parts import setup
from tools.project import ROOT, tag

FOLDER = f"minilora-{tag().removeprefix('v')}"
ARCHIVE = f"/somebody/minilora/archive/refs/tags/{tag()}.zip"
NOWHERE = "http://127.0.0.1:9/course.zip"  # nobody listens at this port
STUB = {
    "minilora/__init__.py": "__version__ = 'of a test'",
    "minilora/course/__init__.py": "",
    "minilora/course/check.py": "",
    "minilora/course/ready.py": "def start():\n    print('minilora is ready')\n    return 'cpu'",
}
# A kernel's shell without a kernel. Each cell's output is what a learner sees of it.
SHELL = """
import contextlib, io, json, sys
# here the course is not installed
editable = lambda finder: getattr(finder, "__module__", "").startswith("__editable__")
sys.meta_path[:] = [finder for finder in sys.meta_path if not editable(finder)]
sys.path[:] = [p for p in sys.path if p and p != FORBIDDEN]
sys.path.insert(0, "")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
seen = []
for cell in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        result = shell.run_cell(cell, store_history=True)
    seen.append([result.success, out.getvalue().strip()])
print(json.dumps(seen))
"""


@pytest.fixture
def stand_ins(tmp_path):
    """torch, NumPy and matplotlib in name only, since loading the real ones takes seconds."""
    folder = tmp_path / "stand-ins"
    for name in ("torch", "numpy", "matplotlib", "matplotlib/pyplot"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


@pytest.fixture
def here(tmp_path):
    """The folder of the notebook."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def lay(folder: Path, files: dict[str, str] = STUB) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def pack(file: Path, top: str = f"{FOLDER}/", files: dict[str, str] = STUB) -> Path:
    """A zip as the repository's host makes it, all in one folder; a wheel has no such folder."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(top + name, text)
    return file


def run(here: Path, stand_ins: Path | None, *cells: str, **environment: str) -> list[tuple]:
    """(whether it ended well, what it shows) of each cell, in a process without git."""
    bare = {k: v for k, v in os.environ.items() if k not in ("PATH", "PYTHONPATH")}
    paths = {"PYTHONPATH": str(stand_ins)} if stand_ins else {}
    ended = subprocess.run(
        [sys.executable, "-c", f"FORBIDDEN = {str(ROOT)!r}\n{SHELL}"],
        cwd=here,
        env={**bare, "PATH": "", "IPYTHONDIR": str(here / ".ipython"), **paths, **environment},
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    shutil.rmtree(here / ".ipython", ignore_errors=True)
    return [tuple(pair) for pair in json.loads(ended.stdout.splitlines()[-1])]


def first_cell(archive: str = NOWHERE, uploads: Path | None = None) -> str:
    source = setup(archive)
    return source.replace("/kaggle/input", str(uploads)) if uploads else source


@pytest.fixture
def server(tmp_path):
    """Serves the archive of a tag on 127.0.0.1."""
    served = tmp_path / "served"
    (served / ARCHIVE[1:]).parent.mkdir(parents=True)
    pack(served / ARCHIVE[1:])
    handler = functools.partial(Quiet, directory=served)
    started = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{started.server_port}"
    started.shutdown()
    started.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *told):
        pass


READY = [(True, "minilora is ready")]
WHERE = "import minilora, os; print(os.path.dirname(os.path.dirname(minilora.__file__)))"


@pytest.mark.parametrize("place", ["..", ".", "minilora"])
def test_beside_inside_and_above_a_clone(here, stand_ins, place):
    """The folder of the notebooks, the clone, and the folder that holds a clone named minilora."""
    clone = lay((here / place).resolve())
    ready, where = run(here, stand_ins, first_cell(), WHERE)
    assert [ready] == READY and where == (True, str(clone))


def test_it_is_fetched_without_git_and_kept(here, stand_ins, server):
    cell = first_cell(server + ARCHIVE)
    ready, where = run(here, stand_ins, cell, WHERE)
    assert [ready] == READY and where[1] == str(here / FOLDER)
    assert [path.name for path in here.iterdir()] == [FOLDER]
    assert run(here, stand_ins, first_cell(NOWHERE)) == READY  # the next start needs no network


@pytest.mark.parametrize("packed", [f"{FOLDER}.zip", f"{FOLDER}-py3-none-any.whl"])
@pytest.mark.parametrize("beside", [True, False])
def test_an_uploaded_zip_or_wheel_is_found(here, stand_ins, tmp_path, packed, beside):
    """Beside the notebook, or as a dataset of Kaggle."""
    uploads = tmp_path / "input"
    (uploads / "a-dataset" / "deeper").mkdir(parents=True)
    folder = here if beside else uploads / "a-dataset" / "deeper"
    pack(folder / packed, f"{FOLDER}/" if packed.endswith("zip") else "")
    ready, where = run(here, stand_ins, first_cell("", uploads), WHERE)
    assert [ready] == READY and where[1] == str(here / FOLDER)


def test_an_upload_that_kaggle_has_unpacked_is_used_where_it_is(here, stand_ins, tmp_path):
    clone = lay(tmp_path / "input" / "a-dataset" / FOLDER)
    ready, where = run(here, stand_ins, first_cell(uploads=tmp_path / "input"), WHERE)
    assert [ready] == READY and where[1] == str(clone) and not list(here.iterdir())


def test_names_that_lead_outside_are_not_unpacked(here, stand_ins):
    pack(here / "minilora.zip", "", {"../outside.py": "", "/outside.py": "", **STUB})
    assert run(here, stand_ins, first_cell()) == READY
    assert not list(here.parent.rglob("outside.py")) and not Path("/outside.py").exists()


@pytest.mark.parametrize(
    "archive, told",
    [
        (NOWHERE, "Connection refused"),
        ("", "its repository has no address yet"),
        ("SERVER/somebody/minilora/archive/refs/tags/v9.zip", "HTTP Error 404"),
        ("SERVER/page.zip", "not a zip file"),
        ("SERVER/other.zip", "course.zip does not hold it"),
    ],
)
def test_what_cannot_be_found_is_told_in_one_line(here, server, tmp_path, archive, told):
    (tmp_path / "served" / "page.zip").write_text("<p>please log in</p>")
    pack(tmp_path / "served" / "other.zip", files={"readme.txt": ""})
    cell, later = first_cell(archive.replace("SERVER", server)), "print(device)"
    first, second, magic, again = run(here, None, cell, later, "%%time\n1", cell)
    assert told in first[1] and "Switch Internet on" in first[1] and "zip or wheel" in first[1]
    assert not first[0], "Run All goes on"
    assert first == second == magic and len(first[1].splitlines()) == 1
    assert re.sub("tmp[^/]*", "", again[1]) == re.sub("tmp[^/]*", "", first[1]) and not again[0]
    assert not list(here.iterdir()), "something half is left"


def test_when_it_is_mended_later_cells_run_again(here, stand_ins):
    mend = f"import shutil; shutil.copytree({str(lay(here.parent / 'clone'))!r}, 'minilora')"
    cell = first_cell()
    mended = f"# Setup of a test\n{mend}"
    seen = run(here, stand_ins, cell, "device", mended, cell, "print(device)")
    assert [good for good, _ in seen] == [False, False, True, True, True]
    assert seen[-1][1] == "cpu"


def test_it_is_short():
    lines = setup().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100


CALLS = "import torch; print(check.find('00-score').title, torch.__version__[0], device)"


@pytest.mark.slow
@pytest.mark.parametrize("version, good", [("", True), ("0.1", False)])
def test_the_real_course_from_an_archive(here, server, tmp_path, version, good):
    """With the packages of this environment, and with one that is too old."""
    files = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in [ROOT / "pyproject.toml", *sorted((ROOT / "minilora").rglob("*.py*"))]
        if path.suffix != ".pyc"
    }
    pack(tmp_path / "served" / ARCHIVE[1:], files=files)
    old = tmp_path / "old" / f"safetensors-{version}.dist-info"
    if version:
        told = f"Metadata-Version: 2.1\nName: safetensors\nVersion: {version}\n"
        lay(old, {"METADATA": told})
    ready, later = run(here, old.parent if version else None, first_cell(server + ARCHIVE), CALLS)
    if good:
        assert ready == (True, f"minilora {tag()[1:]} is ready") and later[1].endswith("cpu")
    else:
        assert ready == later and not ready[0] and len(ready[1].splitlines()) == 1
        assert ready[1].startswith("safetensors 0.1 is too old") and "%pip" in ready[1]
