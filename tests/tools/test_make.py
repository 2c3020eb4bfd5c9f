"""`make lab` really serves lesson 00."""

import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from tools.project import ROOT

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
