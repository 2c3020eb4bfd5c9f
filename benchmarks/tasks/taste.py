"""The table under the sliders of lesson 00: a minute of QLoRA by rank and precision.
`python -m benchmarks.tasks.taste`

What it replaces: training in the slider's path. How it works: every rank with every precision of
the frozen base, sixty steps on `extract`, forty questions of the test split. What it leaves out:
longer runs, other tasks and seeds. Where numerics differ: see kit/short_runs.py.
"""

from benchmarks.kit.short_runs import RECIPE, arguments, sweep

RANKS = (1, 2, 4, 8, 16, 32)
PRECISIONS = ("fp32", "nf4", "int3", "int2")

if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0], "taste.json").parse_args()
    recipes = [
        {**RECIPE, "steps": options.steps, "precision": p, "rank": r}
        for p in PRECISIONS
        for r in RANKS
    ]
    sweep(
        options.out,
        "the shipped base, its linear layers in each precision, adapters of each rank on all "
        "of them, trained briefly",
        recipes,
        options.jobs,
    )
