"""The numbers behind the slider of lesson 06."""

import pytest
import torch

from minilora.course.explore import outliers
from minilora.qlora import int8


@pytest.fixture(autouse=True)
def _one_reading():
    outliers.table()


@pytest.mark.parametrize("factor", outliers.FACTORS)
def test_planting_changes_no_product(factor):
    (x, w), (x2, w2) = outliers.observed(), outliers.planted(factor)
    assert torch.equal(x.double() @ w.double().T, x2.double() @ w2.double().T)
    assert torch.equal(x2[:, outliers.PLANTED], factor * x[:, outliers.PLANTED])


@pytest.mark.parametrize("threshold, factor", [(0, 64), (6, 64), (6, 1), (48, 64), (2, 16)])
def test_the_errors_shown_are_the_packages(threshold, factor):
    found = outliers.compute(threshold, factor)
    measured = int8.product_error(*outliers.planted(factor), threshold)
    assert (
        found["error"] == pytest.approx(measured.error, rel=1e-6)
        and len(found["columns"]) == measured.columns
    )
    assert found["plain"] == pytest.approx(
        int8.product_error(*outliers.planted(factor), 0).error, rel=1e-6
    )


def test_unrounded_weights_are_what_the_second_curve_says():
    """With W's outlier columns exact: the integer part of the rest, and the float product of these
    columns with W itself.
    """
    x, w = outliers.planted(64)
    columns = int8.outlier_columns(x, 6.0)
    codes, scale, _ = int8.quantize_rows(w)
    rows, row_scale, _ = int8.quantize_rows(x, 6.0)
    y = (rows.double() * row_scale[:, None] / 127) @ (codes.double() * scale[:, None] / 127).T + x[
        :, columns
    ].double() @ w[:, columns].double().T
    exact = x.double() @ w.double().T
    found = outliers.compute(6, 64)
    assert found["exact weights"] == pytest.approx(
        ((y - exact).norm() / exact.norm()).item(), rel=1e-3
    )
    assert found["exact weights"] < found["error"] < found["plain"]


def test_the_sentence_names_the_columns():
    said, drawn = outliers.render(outliers.compute(6, 64))
    assert f"6 of {outliers.observed()[0].shape[1]} columns (7, 50, 100, 141, 200, 230)" in said
    assert all(f">{column}</text>" in drawn for column in outliers.PLANTED)
    assert (
        "and " in outliers.render(outliers.compute(1, 64))[0]
        and "(none)" in outliers.render(outliers.compute(384, 1))[0]
    )
    assert outliers.render(outliers.compute(0, 64))[0].startswith("Threshold 0, plain int8")
