"""The largest inputs of each linear layer: of all tokens, by column and by token, and nothing left
behind.
"""

import torch
from torch import nn

from minilora.course.largest_inputs import largest_inputs
from minilora.llama import Llama
from minilora.qlora import int8


def test_columns_and_tokens_are_the_inputs_own_over_several_calls():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    first, second = (
        torch.tensor([[[1.0, -5.0, 0.0], [2.0, 0.5, 3.0]]]),
        torch.tensor([[0.0, 4, -7]]),
    )

    def run():
        model(first)
        model(second)

    (found,) = largest_inputs(model, run).values()
    assert found.columns.tolist() == [2.0, 5.0, 7.0]
    assert found.tokens.tolist() == [5.0, 3.0, 7.0]
    assert not model[0]._forward_pre_hooks


def test_columns_that_reach_a_threshold_are_those_of_trace_outliers(tiny_folder):
    model, ids = (
        Llama.from_pretrained(tiny_folder).eval(),
        torch.tensor([[1, 5, 9, 11], [1, 2, 3, 4]]),
    )
    found = largest_inputs(model, lambda: model(ids))
    for threshold in (0.5, 1.5):
        traced = int8.trace_outliers(model, lambda: model(ids), threshold)
        assert traced.keys() == found.keys()
        for path, columns in traced.items():
            assert torch.equal((found[path].columns >= threshold).nonzero().flatten(), columns)


def test_the_hooks_go_even_where_the_run_breaks_off():
    model = nn.Sequential(nn.Linear(3, 2))

    def run():
        raise KeyError("no text")

    try:
        largest_inputs(model, run)
    except KeyError:
        assert not model[0]._forward_pre_hooks
    else:
        raise AssertionError("the error was kept back")
