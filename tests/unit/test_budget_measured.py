"""Published peaks beside predictions: the table is whole, its errors are what it says, and what is off is explained."""

import pytest

from minilora.budget import estimate, measured
from tools import readme

ROWS = measured.compared()


def test_every_figure_has_a_source_a_setup_and_a_reason():
    assert len(ROWS) >= 25 and len({row.measurement.what for row in ROWS}) == len(ROWS)
    assert len({row.measurement.source for row in ROWS}) >= 4
    for row in ROWS:
        m = row.measurement
        assert m.unit in measured.UNITS and m.counts in ("allocated", "card")
        assert all(len(text) > 15 for text in (m.source, m.stated, m.assumed, m.why))


@pytest.mark.parametrize("what, peak, unit", [
    ("Llama 3.1 8B LoRA, RTX 4090", 16.2, "GiB"), ("Llama 3.1 8B QLoRA, RTX 4090", 7.4, "GiB"),
    ("llama-2-7b LoRA, micro-batch 1", 21.30, "GB"), ("llama-2-7b QLoRA, NF4", 14.14, "GB"),
])  # fmt: skip
def test_the_figures_are_the_published_ones(what, peak, unit):
    row = next(row for row in ROWS if row.measurement.what == what)
    assert (row.measurement.peak, row.measurement.unit) == (peak, unit)
    assert row.measured == round(peak * (10**9 if unit == "GB" else 2**30))


def test_a_prediction_is_the_estimate_and_its_error_is_relative_to_the_measurement():
    row = next(row for row in ROWS if row.measurement.what == "llama-2-7b LoRA, micro-batch 1")
    budget = estimate("llama-2-7b", **row.measurement.settings)
    assert row.predicted == budget.peak_allocated
    assert row.error == pytest.approx((budget.peak_allocated - 21.30e9) / 21.30e9)
    card = next(row for row in ROWS if row.measurement.counts == "card")
    assert card.predicted == estimate(card.measurement.model, **card.measurement.settings).with_context


def test_runs_that_are_stated_in_full_are_within_eight_percent_and_no_explained_one_is_off_by_more_than_fifteen():
    plain = [row for row in ROWS if row.measurement.extra is None and not row.measurement.bound]
    assert len(plain) >= 10 and all(abs(row.error) < 0.08 for row in plain)
    assert all(abs(row.error_explained) < 0.15 for row in ROWS)
    assert measured.mean_error(ROWS, explained=True) < 0.07 < 0.12 > measured.mean_error(ROWS)


def test_limits_count_in_no_mean_and_are_marked():
    bounds = [row for row in ROWS if row.measurement.bound]
    assert bounds and measured.mean_error(ROWS) == measured.mean_error([row for row in ROWS if row not in bounds])
    text = measured.table(ROWS)
    assert text.count("≤") == len(bounds) and len(text.splitlines()) == len(ROWS) + 1


def test_the_readme_shows_every_figure_with_mean_and_worst_error():
    text = readme.published_table()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines):
        assert row.measurement.what in line[0] and f"{row.measurement.peak:.2f} {row.measurement.unit}" in line[1]
        assert float(line[2].split()[0]) == pytest.approx(row.predicted / measured.UNITS[row.measurement.unit], abs=0.006)
        assert float(line[3].removesuffix(" %").replace("−", "-")) == pytest.approx(100 * row.error, abs=0.06) and len(line[4]) > 8
    assert f"**{100 * measured.mean_error(ROWS):.1f} %**" in text
    worst = max((row for row in ROWS if not row.measurement.bound), key=lambda row: abs(row.error))
    assert f"{100 * worst.error:+.1f} %".replace("-", "−") in text.splitlines()[0] and worst.measurement.what in text.splitlines()[0]
    assert all(row.measurement.source in text for row in ROWS)
    assert text in (readme.ROOT / "README.md").read_text(encoding="utf-8")
