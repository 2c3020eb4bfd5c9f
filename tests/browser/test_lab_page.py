"""The deadline of a run: it counts from the last progress, and a run that hangs is told."""

import pytest
from lab_page import FINISHED

pytestmark = pytest.mark.browser
# Cells as JupyterLab shows them; one of them ends every `tick` ms, until `ended` of them have.
PAGE = """<div class="jp-Notebook"></div><script>
    const prompt = text => `<div class="jp-CodeCell"><div class="jp-InputPrompt">${text}</div>
        <div class="cm-content">x</div><div class="jp-OutputArea-output"></div></div>`;
    document.querySelector('.jp-Notebook').innerHTML = prompt('[*]:').repeat(6);
    let n = 0;
    const prompts = document.querySelectorAll('.jp-InputPrompt');
    setInterval(() => { if (n < ENDED) prompts[n++].innerText = `[${n}]:`; else { GOON } }, TICK);
</script>"""
GROW = "document.querySelector('.jp-OutputArea-output').textContent += '.'"
FAIL = """document.querySelectorAll('.jp-InputPrompt').forEach(p => {
    if (p.innerText === '[*]:') p.innerText = '[ ]:'; });
    const output = document.querySelector('.jp-OutputArea-output');
    output.dataset.mimeType = 'application/vnd.jupyter.error'"""


@pytest.fixture
def cells(browser):
    opened = browser.new_page()

    def show(ended: int, goon: str = "0", tick: int = 300):
        page = PAGE.replace("ENDED", str(ended)).replace("GOON", goon).replace("TICK", str(tick))
        opened.set_content(page)
        return opened

    yield show
    opened.close()


def test_a_slow_run_that_goes_on_has_no_deadline(cells):
    cells(6).evaluate(FINISHED, 1000)  # 1.8 s in all


def test_a_run_that_hangs_is_given_up_and_says_where(cells):
    with pytest.raises(Exception, match=r"no progress in 1 s: \[1\]: \[2\]: \[\*\]:"):
        cells(2).evaluate(FINISHED, 1000)


def test_an_output_that_grows_is_progress(cells):
    page = cells(2, GROW)
    with pytest.raises(Exception, match="Timeout"):
        page.wait_for_function(f"({FINISHED})(1000)", timeout=2500)


def test_a_run_that_failed_is_not_waited_for(cells):
    cells(2, FAIL).evaluate(FINISHED, 60_000)
