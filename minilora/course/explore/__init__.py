"""The sliders of the lessons: per topic, compute (pure) → render (pure) → widget (a few lines).

What it replaces: `interact` with a matplotlib figure per move, which costs 300–600 ms and flickers.
How it works: a topic module holds an `Explorer`: sliders, `compute(**state)` → plain numbers,
`render(numbers)` → `(label, html)`, made with `svg` (bars, lines, grids) or `picture` (matrices). A
move of a slider runs both and puts the text into one HTML widget. The tests render every position
of every slider of every topic without a browser, and move each in a browser.
What it leaves out: `interact`, `Output`, `clear_output`; anything that ipywidgets 7.7 and 8 do not
share.

To add a slider as a lesson's author, write `minilora/course/explore/TOPIC.py`:

    from . import svg
    from .widget import Explorer, Slider

    def compute(rank: int, alpha: int) -> dict:
        '''Pure, and under 50 ms: cache what is slow with functools.cache.'''
        return {"numbers": rank * (64 + 64), "scale": alpha / rank}

    def render(found: dict) -> tuple[str, str]:
        '''Pure: one sentence that says what the picture shows, and the picture.'''
        label = f"{found['numbers']} numbers train, scale {found['scale']:.2f}"
        return label, svg.bars([found["numbers"], 4096], ["A and B", "all of W"])

    EXPLORER = Explorer("lora-size", compute, render, [
        Slider("rank", range(1, 33), start=8, label="rank r"),
        Slider("alpha", range(1, 65), start=16, label="alpha α"),
    ])

In the notebook a cell tagged `slider` that needs only the setup cell, and ends with the widget;
before it, for readers without a kernel, a plain call that prints the default state:

    from minilora.course.explore import TOPIC

    TOPIC.EXPLORER.still()  # in the cell before
    TOPIC.EXPLORER.show()   # in the slider's cell

The state stands in the page as `data-rank="8"` on an element with `role="img"` and the label as
`aria-label`; the tests wait for it. Text from a model or a user goes through `html.escape`, which
`svg.text` and all labels here do by themselves.
"""
