"""`make lab` really serves lesson 00, and the setup cell really fetches the course where it is
missing.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tools import lesson_parts
from tools.project import ROOT, tag

pytestmark = pytest.mark.slow


def _up_to_date() -> bool:
    """True where make has made the environment, so that `make lab` goes straight to JupyterLab."""
    try:
        return (
            subprocess.run(["make", "-q", ".venv/.made"], cwd=ROOT, capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


def _read_when_up(request: urllib.request.Request, patience: float = 60) -> bytes:
    """The answer of a server that has printed its address and may not listen yet."""
    give_up = time.monotonic() + patience
    while True:
        try:
            return urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.URLError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.3)


@pytest.mark.skipif(not _up_to_date(), reason="the environment was not made by make")
def test_make_lab_serves_lesson_00(tmp_path):
    flags = (
        "--no-browser --ServerApp.ip=127.0.0.1 --ServerApp.port=0 "
        "--LabApp.extension_manager=readonly"
    )
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        ["make", "lab", f"LAB_FLAGS={flags}"],
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    watchdog = threading.Timer(180, os.killpg, (process.pid, signal.SIGTERM))
    watchdog.start()
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab\S*\?token=(\w+)", line):
                break
        else:
            pytest.fail("".join(seen))
        request = urllib.request.Request(
            f"{found[1]}/api/contents/00-start-here.ipynb?content=0",
            headers={"Authorization": f"token {found[2]}"},
        )
        assert b'"type": "notebook"' in _read_when_up(request)
    finally:
        watchdog.cancel()
        os.killpg(process.pid, signal.SIGTERM)
        process.stdout.close()
        process.wait(30)


def _git(folder, *arguments):
    identity = [
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_setup_cell_fetches_the_course_where_it_is_missing(tmp_path):
    """As on Colab: no minilora anywhere, an empty folder, a repository with a tag. Run twice, as
    after a restart of the kernel.
    """
    remote = tmp_path / "remote"
    (remote / "minilora").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "check.py"):
        (remote / "minilora" / name).write_bytes((ROOT / "minilora" / name).read_bytes())
    (remote / "minilora" / "exercises").mkdir()
    (remote / "minilora" / "exercises" / "__init__.py").write_bytes(
        (ROOT / "minilora" / "exercises" / "__init__.py").read_bytes()
    )
    try:
        _git(remote, "init", "--quiet")
        _git(remote, "add", ".")
        _git(remote, "commit", "--quiet", "-m", "course")
        _git(remote, "tag", tag())
    except OSError:
        pytest.skip("git is not installed")
    cell = lesson_parts.SETUP.format(tag=tag(), repository=remote.as_uri())
    # take this clone away from the interpreter: its folder, and the finder of an editable install
    hide = (
        "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    )
    elsewhere = tmp_path / "content"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for _ in range(2):
        code = hide + cell + "\nprint(minilora.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT)],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].endswith("is ready")
        assert done.stdout.splitlines()[1] == str(
            elsewhere / "minilora-course" / "minilora" / "__init__.py"
        )
