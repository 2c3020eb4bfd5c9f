"""The table of facts learned by heart says what the runs say."""

from tools.capacity_table import HEAD, capacity


def run(seed, recall, rank=2, method="lora", bits=3000.0):
    return {
        **dict(method=method, targets=["q_proj", "v_proj"], rank=rank, seed=seed, recall=recall),
        **dict(asked=200, facts=300, steps=352, batch_size=64, trained=8960, lr=0.01, bits=bits),
        "before": {"loss": 1.034, "lookup": 0.98},
        "after": {"loss": 2.0 + seed, "lookup": 0.5},
    }


def test_a_line_is_the_mean_over_its_seeds_with_its_ends():
    runs = [run(seed, recall) for seed, recall in ((0, 100), (1, 120), (2, 200))]
    found = {"runs": [*runs, run(0, 0, rank=0, method="full")], "date": "2026-12-01"}
    lines = capacity({**found, "versions": {"torch": "2.13.0+cpu"}}).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["LoRA 2 on q and v", "8,960"]
    assert cells[2] == "0.667"  # 300 · 6 · log₂ 10 / 8960
    assert cells[3:6] == ["0.01", "70 (50 to 100)", "0.335"]
    assert cells[6:] == ["3.00", "50"]
    assert lines[3].startswith("| all weights |") and lines[0] == HEAD
    assert "mean of 3 seeds" in lines[-1] and "loss 1.034, look-ups 98 %" in lines[-1]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_without_runs_it_names_the_command():
    assert "python -m benchmarks.tasks.capacity" in capacity(None)
