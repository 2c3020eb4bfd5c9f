"""A process on a processor: its moments, and what stands beside the run in all of them."""

import pytest

from minilora.budget.catalog import Shape
from minilora.budget.estimate import estimate
from minilora.budget.process import process
from minilora.budget.table import table
from minilora.system.memory import LIBRARIES

LITTLE = Shape("little", hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, vocab=512)


def told(method, **more):
    settings = dict(precision="fp32", checkpointing=False, library="minilora", device="cpu")
    return estimate(LITTLE, method=method, **(settings | more))


@pytest.mark.parametrize("method", ["lora", "qlora", "int8"])
def test_a_step_stands_beside_the_libraries(method):
    budget = told(method, batch=4, seq=64)
    found = process(budget, more=1000)
    assert found.moments["training"] == LIBRARIES + budget.peak_allocated + 1000
    assert (found.moment, found.peak) == ("training", found.moments["training"])


def test_while_loading_the_file_stands_beside_the_model():
    budget = told("lora", batch=1, seq=2)
    assert process(budget).moments["loading"] == LIBRARIES + (4 + 2) * LITTLE.parameters


def test_packed_layers_stand_beside_the_whole_model_where_they_outweigh_the_file():
    # 8 bits of every weight are less than the file's 16
    assert process(told("int8")).moments["loading"] == LIBRARIES + (4 + 2) * LITTLE.parameters


def test_a_run_of_few_tokens_takes_most_while_its_model_is_read():
    found = process(estimate("smollm2-135m", method="qlora", precision="fp32", seq=8, device="cpu"))
    assert found.moment == "loading"


def test_the_table_names_the_process_on_a_processor_alone():
    assert "process" in str(table(told("qlora")))
    assert "process" not in str(table(told("qlora", device="cuda")))
