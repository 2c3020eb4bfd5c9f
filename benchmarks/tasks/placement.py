"""Where to put an adapter of a given size (lesson 08): as many trained numbers, on other matrices.
`python -m benchmarks.tasks.placement`

What it replaces: nothing. How it works: on the shipped base, rank 32 on query and value, rank 16 on
all four attention matrices and rank 7 on all seven linear layers are 143,360 numbers each; rank 12
on the MLP alone is 138,240. α = 2r, so that the scale is 2 everywhere.
What it leaves out: other budgets and tasks. Where numerics differ: see kit/short_runs.py.
"""

from benchmarks.kit.short_runs import RECIPE, arguments, sweep

PLACES = (
    (("q_proj", "v_proj"), 32),
    (("q_proj", "k_proj", "v_proj", "o_proj"), 16),
    (("gate_proj", "up_proj", "down_proj"), 12),
    ("all", 7),
)
SEEDS = (0, 1, 2)

if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0], "placement.json", steps=30).parse_args()
    recipes = [
        {
            **RECIPE,
            "steps": options.steps,
            "precision": "fp32",
            "asked": 100,
            "targets": targets if targets == "all" else list(targets),
            "rank": rank,
            "alpha": 2 * rank,
            "seed": seed,
        }
        for seed in SEEDS
        for targets, rank in PLACES
    ]
    sweep(
        options.out,
        "adapters of equal size on other matrices of the shipped base, trained briefly on extract",
        recipes,
        options.jobs,
    )
