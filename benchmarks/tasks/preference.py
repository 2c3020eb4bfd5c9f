"""DPO and the policy gradient of lesson 09, several seeds and strengths of the reference.
`python -m benchmarks.tasks.preference`

What it replaces: one lucky run.
How it works: the shipped model that answers sums shortly or at length
(`minilora.course.short_answers`) is the reference; a fresh adapter learns short answers by
`minilora.train.preference`, by judged pairs (method dpo) or by reward (method policy). Before and
after, 150 held-out questions are answered by drawing; `short` and `right` are percent of them, `kl`
is the mean log π_θ/π_ref of fifty draws.
What it leaves out: other preferences, other tasks. Where numerics differ: see kit/short_runs.py.
"""

from __future__ import annotations

import time

from benchmarks.kit.short_runs import arguments, sweep

SEEDS = (0, 1, 2)
DPO = {
    "method": "dpo",
    "rank": 4,
    "lr": 3e-4,
    "steps": 12,
    "batch_size": 8,
    "judged": 100,
    "asked": 150,
}
POLICY = {"method": "policy", "rank": 4, "lr": 1e-3, "steps": 8, "batch_size": 32, "asked": 150}
BETAS = {"dpo": (0.1, 0.5), "policy": (0.02, 0.3)}


def one_run(recipe: dict) -> dict:
    """Before, training, after: at one thread."""
    import torch

    torch.set_num_threads(1)
    from minilora.course import short_answers
    from minilora.train import preference

    began = time.perf_counter()
    model, tokenizer = short_answers.talkative_model()
    asked = short_answers.questions("test")[: recipe["asked"]]
    before = short_answers.tally(
        asked, short_answers.answers(model, tokenizer, asked, seed=recipe["seed"])
    )
    records = short_answers.learn(model, tokenizer, recipe)
    given = short_answers.answers(model, tokenizer, asked, seed=recipe["seed"])
    rows = preference.sample_answers(
        model, tokenizer, [example["prompt"] for example in asked[:50]], seed=recipe["seed"]
    )
    with torch.no_grad():
        kl = (
            (preference.answer_logprobs(model, rows) - preference.reference_logprobs(model, rows))
            .mean()
            .item()
        )
    after = short_answers.tally(asked, given)
    told = {
        "before": dict(zip(("short", "right"), before)),
        "after": dict(zip(("short", "right"), after)),
        "kl": round(kl, 4),
    }
    return {
        **recipe,
        **told,
        "records": records,
        "answers": given[:3],
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(options=None) -> None:
    options = options or arguments(__doc__.splitlines()[0], "sweep-preference.json").parse_args()
    recipes = [
        {**kind, "beta": BETAS[kind["method"]][i], "seed": seed}
        for i in range(2)
        for kind in (DPO, POLICY)
        for seed in SEEDS
    ]
    sweep(
        options.out,
        "short answers learned by DPO and by policy gradient, before and after on held-out "
        "questions",
        recipes,
        options.jobs,
        one_run,
    )


if __name__ == "__main__":
    main()
