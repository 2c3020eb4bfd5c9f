"""JupyterLab in a headless Chromium, driven so that it is not flaky.

Three things make such tests fail now and then. Cells that run before the kernel has said who it is
are lost, and cells outside a short window are not in the page at all: so everything the page needs
is awaited inside the page, and windowing is off. And on a busy machine a lesson may take any time:
so a deadline counts from the last progress, never from the start.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

READY = """async (patience) => {
    let awaited = '', end = 0;
    const pause = async what => {
        if (what !== awaited) { awaited = what; end = performance.now() + patience; }
        if (performance.now() > end) throw new Error('waited in vain for ' + what);
        await new Promise(r => setTimeout(r, 50));
    };
    const app = window.jupyterapp;
    await app.started; await app.restored;
    const widgets = () => [...app.shell.widgets('main')];
    const find = () => widgets().find(w => w.context && w.content && w.content.widgets);
    while (!find()) await pause('the notebook');
    const panel = find();
    await panel.context.ready; await panel.revealed;
    while (!panel.sessionContext.session?.kernel)
        await pause('a kernel; does the notebook name its kernelspec?');
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    return panel.content.widgets.length;
}"""
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
END_KERNELS = (
    "async () => { if (window.jupyterapp) await "
    "window.jupyterapp.serviceManager.sessions.shutdownAll(); }"
)
# Until every code cell has its number, or a cell has failed and none is left to run. A new prompt,
# and an output that grows, is progress; only a page without any for `patience` ms is given up.
FINISHED = """async (patience) => {
    const error = '[data-mime-type="application/vnd.jupyter.error"]';
    let seen = '', since = performance.now();
    for (;;) {
        const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
            .filter(c => c.querySelector('.cm-content').innerText.trim());
        const prompts = cells.map(c => c.querySelector('.jp-InputPrompt').innerText.trim());
        if (prompts.length && prompts.every(p => /^\\[\\d+\\]:$/.test(p))) return;
        if (document.querySelector(error) && !prompts.includes('[*]:')) return;
        const outputs = [...document.querySelectorAll('.jp-OutputArea-output')];
        const now = prompts.join(' ') + outputs.map(o => o.textContent.length).join();
        if (now !== seen) { seen = now; since = performance.now(); }
        if (performance.now() - since > patience)
            throw new Error(`no progress in ${patience / 1000} s: ${prompts.join(' ')}`);
        await new Promise(r => setTimeout(r, 100));
    }
}"""
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 600_000  # ms without any progress; one cell trains, and others share the two cores


def chromium() -> str | None:
    """The browser's path: MINILORA_CHROMIUM, or what the system has; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    places = (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    )
    found = [
        os.environ.get("MINILORA_CHROMIUM"),
        *map(shutil.which, names),
        *(p for p in places if Path(p).exists()),
    ]
    return next((path for path in found if path), None)


class Server:
    """JupyterLab on a free port of 127.0.0.1 over `folder`, with config, runtime, workspace and
    settings folders of its own.
    """

    def __init__(self, folder: Path, own: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        for name, value in SETTINGS.items():
            file = own / "settings" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(own / "config"),
            "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
            "JUPYTER_DATA_DIR": str(own / "data"),
            "JUPYTER_NO_CONFIG": "",
            "IPYTHONDIR": str(own / "ipython"),
            "OMP_NUM_THREADS": "1",  # two that wait for each other stand still on busy cores
        }
        # On a new machine matplotlib looks for fonts once, and says so in the first cell that
        # imports it.
        subprocess.run(
            [sys.executable, "-c", "import matplotlib.font_manager"],
            check=True,
            capture_output=True,
        )
        self.log = own / "lab.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--expose-app-in-browser",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={self.port}",
                "--ServerApp.port_retries=0",
                "--IdentityProvider.token=",
                "--LabApp.extension_manager=readonly",
                "--LabApp.news_url=None",
                f"--ServerApp.root_dir={folder}",
                f"--LabApp.user_settings_dir={own / 'settings'}",
                f"--LabApp.workspaces_dir={own / 'workspaces'}",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self._await()

    def _await(self) -> None:
        told, since = 0, time.monotonic()
        while self.process.poll() is None and time.monotonic() - since < PATIENCE / 1000:
            try:
                urllib.request.urlopen(f"{self.address}/api", timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
            if self.log.stat().st_size > told:
                told, since = self.log.stat().st_size, time.monotonic()
        raise RuntimeError(
            f"JupyterLab did not start:\n{self.log.read_text(errors='replace')[-3000:]}"
        )

    def stop(self) -> None:
        """End the server and its kernels; by force if it does not listen."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LabPage:
    """One notebook open in a page, as a learner sees it."""

    def __init__(self, page, server: Server, name: str):
        self.page = page
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.address}/doc/tree/{name}?reset", wait_until="domcontentloaded")
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate(READY, PATIENCE)

    def run_all(self) -> None:
        """Run every cell and wait until each has its number, or one has failed."""
        self.page.evaluate(RUN_ALL)
        self.page.evaluate(FINISHED, PATIENCE)

    def errors(self) -> list[str]:
        """What cells printed as errors or warnings."""
        found = self.page.locator(
            '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], '
            '[data-mime-type="application/vnd.jupyter.stderr"]'
        )
        return (
            found.all_inner_texts()
            + self.page.locator(
                ".jp-RenderedText:has-text('Error displaying widget')"
            ).all_inner_texts()
        )

    def cell(self, identity: str):
        """The code cell whose source holds `identity`."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").filter(
            has=self.page.locator(".jp-InputArea", has_text=identity)
        )

    def boxes(self) -> list:
        """Every output that holds sliders and a picture."""
        self.page.wait_for_timeout(200)
        outputs = self.page.locator(".jp-OutputArea-output:has(.noUi-handle):has(.minilora-view)")
        outputs.first.wait_for()
        return outputs.all()

    @staticmethod
    def state(box) -> dict:
        """The data-* attributes of the picture in a box."""
        return box.locator(".minilora-view").first.evaluate("e => ({...e.dataset})")

    def changed(self, box, before: dict) -> dict:
        """Wait for another state than `before`, and return it."""
        self.page.wait_for_function(
            "([e, old]) => JSON.stringify({...e.querySelector('.minilora-view').dataset}) !== old",
            arg=[
                box.element_handle(),
                json.dumps(before, separators=(",", ":"), ensure_ascii=False),
            ],
        )
        return self.state(box)

    def press(self, box, index: int) -> tuple[dict, dict]:
        """Move slider `index` of a box by one with the arrow key; the states before and after."""
        handle = box.locator(".widget-slider .noUi-handle").nth(index)
        before = self.state(box)
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.focus()
        self.page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        return before, self.changed(box, before)

    def type(self, box, index: int, text: str) -> dict:
        """Type `text` into readout `index`; the state after."""
        before = self.state(box)
        box.locator(".widget-readout").nth(index).click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        return self.changed(box, before)

    def write(self, cell, source: str) -> None:
        """Put `source` in the place of a cell's text and run it, as a learner does with the
        keyboard.
        """
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        self.run(cell)

    def run(self, cell) -> None:
        """Run one cell and wait for its new number."""
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text().strip()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(
            "([e, old]) => /^\\[\\d+\\]:$/.test(e.innerText.trim()) && e.innerText.trim() !== old",
            arg=[prompt.element_handle(), before],
        )
