"""What a run may do about a full memory: options that `finetune` has, the mildest first."""

from minilora.budget.setup import make
from minilora.recipes.memory_warning import options


def test_a_step_is_cut_into_any_parts_that_divide_it_down_to_single_rows():
    setup = make("llama-7b", method="qlora", batch=12, seq=256, checkpointing=False)
    assert [option for _, option in options(setup, accumulate=2)] == [
        "--checkpointing",
        "--batch 6 --accumulate 4",
        "--batch 4 --accumulate 6",
        "--batch 3 --accumulate 8",
        "--batch 2 --accumulate 12",
        "--batch 1 --accumulate 24",
        "--seq 128",
        "--seq 64",
        "--seq 32",
    ]


def test_an_option_changes_what_it_says():
    setup = make("llama-7b", method="lora", batch=2, seq=64, checkpointing=True)
    assert options(setup) == [
        ({"batch": 1}, "--batch 1 --accumulate 2"),
        ({"method": "qlora"}, "--method qlora"),
        ({"seq": 32}, "--seq 32"),
    ]
