"""One JupyterLab and one Chromium for all browser tests of a run."""

import os

import pytest
from lab_page import END_KERNELS, FLAGS, Server, chromium


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium. Without one the tests are skipped, or fail where
    MINILORA_BROWSER=required.
    """
    path = chromium()
    if path is None:
        missing = (
            "no Chromium on this machine, so no lesson is tried in a browser (Debian: apt-get "
            "install chromium)"
        )
        (pytest.fail if os.environ.get("MINILORA_BROWSER") == "required" else pytest.skip)(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """The folder that JupyterLab serves; tests lay their notebooks here, so that nothing can write
    into the course.
    """
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def server(browser, shelf, tmp_path_factory):
    started = Server(shelf, tmp_path_factory.mktemp("lab"))
    yield started
    started.stop()


@pytest.fixture
def page(browser, server):
    """A tall page, since a short one windows cells away. Its kernel ends with it."""
    context = browser.new_context(viewport={"width": 1300, "height": 2000})
    opened = context.new_page()
    yield opened
    opened.evaluate(END_KERNELS)
    context.close()
