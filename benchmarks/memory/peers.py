"""What others predict for ten training steps, beside this package and beside the measured peak.

What it replaces: a comparison on one lucky configuration.
How it works: for each of ten setups, from 135 million to 65 billion parameters, the ledger measures
the peak of a real step on tensors without memory; `minilora.budget.estimate` and the rules of
`minilora.budget.published.peers` predict it. accelerate's own functions are run on a model on the
meta device, and must give what the rule in `peers` gives. Writes `results/peers.json`; `make
readme` makes the table.
What it leaves out: the driver's context and the allocator's rounding, which no rule here claims to
know.
Where numerics differ: bytes are exact; the rules are what they are.

    python -m benchmarks.memory.peers            # `--keep` predicts anew beside the peaks that were
    measured last
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from importlib.metadata import version

from benchmarks.kit import machine
from minilora.budget import estimate
from minilora.budget.catalog import llama_config
from minilora.budget.published import peers
from minilora.budget.setup import Setup, make

RESULTS = machine.RESULTS / "peers.json"
TEN = [
    dict(model="smollm2-135m", method="lora", rank=16, batch=8, seq=512, checkpointing=False),
    dict(model="tinyllama-1.1b", method="full", batch=1, seq=512, checkpointing=False),
    dict(model="smollm2-1.7b", method="full-bf16", batch=4, seq=1024, checkpointing=True),
    dict(model="llama-7b", method="full-bf16", batch=1, seq=512, checkpointing=True),
    dict(
        model="llama-7b",
        method="lora",
        rank=8,
        targets="q_proj,v_proj",
        batch=1,
        seq=512,
        checkpointing=False,
    ),
    dict(model="llama-7b", method="lora", rank=16, batch=4, seq=1024, checkpointing=True),
    dict(
        model="llama-7b",
        method="qlora",
        rank=8,
        targets="q_proj,v_proj",
        batch=1,
        seq=512,
        checkpointing=False,
    ),
    dict(model="llama-7b", method="qlora", rank=64, batch=1, seq=2048, checkpointing=True),
    dict(model="llama-3.1-8b", method="qlora", rank=16, batch=2, seq=2048, checkpointing=True),
    dict(model="llama-65b", method="qlora", rank=64, batch=1, seq=512, checkpointing=True),
]


def accelerate_says(setup: Setup) -> float:
    """accelerate's own functions on the model of this shape, on the meta device."""
    import torch
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        name: value
        for name, value in llama_config(setup.shape).to_hf().items()
        if name not in ("architectures", "model_type", "dtype", "torch_dtype")
    }
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.float32)
    total, _ = calculate_maximum_sizes(model)
    if setup.base != "dense":
        return total / 8
    return max(
        estimate_training_usage(
            total, "float32" if setup.precision == "fp32" else "bfloat16"
        ).values()
    )


def told(setup: Setup) -> str:
    """The setup in a few words."""
    names = (
        "all"
        if len(setup.targets) == len(setup.shape.linears())
        else ", ".join(name.removesuffix("_proj") for name in setup.targets)
    )
    adapter = f" r{setup.rank} {names}" if setup.adapters else ""
    return (
        f"{setup.shape.name} {setup.method}{adapter}, {setup.batch} × "
        f"{setup.seq}{', checkpointing' if setup.checkpointing else ''}"
    )


def measure(setup: Setup) -> dict:
    """The ledger's peak of a step, in bytes, and how long it took."""
    from minilora.budget.measure import ledger

    found = ledger.measure(setup)
    return {"ledger": found.peak, "ledger_seconds": round(found.seconds, 1)}


def row(settings: dict, kept: dict) -> dict:
    """One setup: what was measured (now, or in `kept`), what we say, what the others say."""
    setup = make(**settings)
    measured = kept.get(told(setup)) or measure(setup)
    said = {peer.name: peer.rule(setup) for peer in peers.PEERS}
    run = accelerate_says(setup)
    if abs(run / said["accelerate"] - 1) > 0.001:
        raise SystemExit(
            f"{told(setup)}: accelerate says {run:,.0f}, the rule in minilora.budget.peers "
            f"{said['accelerate']:,.0f}; mend the rule"
        )
    return {
        "setup": settings,
        "told": told(setup),
        "ours": estimate(setup).peak_allocated,
        "peers": said,
        **measured,
    }


def errors(rows: list[dict]) -> dict[str, dict]:
    """Mean and worst absolute error of each estimator against the ledger, and on how many setups it
    answered.
    """
    found = {}
    for name in ("minilora", *(peer.name for peer in peers.PEERS)):
        said = [(r["ours"] if name == "minilora" else r["peers"][name], r["ledger"]) for r in rows]
        off = [guess / truth - 1 for guess, truth in said if guess is not None]
        found[name] = {
            "mean": statistics.fmean(map(abs, off)),
            "worst": max(off, key=abs),
            "answers": len(off),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, metavar="N", help="the first N setups, written nowhere")
    parser.add_argument(
        "--keep", action="store_true", help="measure nothing that the results file has"
    )
    args = parser.parse_args()
    only, kept, rows = args.only, {}, []
    if args.keep and RESULTS.exists():
        kept = {
            r["told"]: {name: r[name] for name in ("ledger", "ledger_seconds")}
            for r in json.loads(RESULTS.read_text())["rows"]
        }
    for settings in TEN[:only]:
        rows.append(row(settings, kept))
        print(
            f"{rows[-1]['told']}: ledger {rows[-1]['ledger'] / 1e9:.2f} GB, ours "
            f"{rows[-1]['ours'] / 1e9:.2f} GB, {rows[-1]['ledger_seconds']} s",
            flush=True,
        )
    for name, found in errors(rows).items():
        print(
            f"{name}: mean error {100 * found['mean']:.1f} %, worst "
            f"{100 * found['worst']:+.0f} %, {found['answers']} answers"
        )
    if only is None:
        about = {
            "what": "predicted and measured peaks of ten training steps, in bytes",
            "command": "python -m benchmarks.memory.peers",
            "date": date.today().isoformat(),
            "versions": {
                name: version(name) for name in ("minilora", "torch", "transformers", "accelerate")
            },
            "sources": {
                peer.name: {"source": peer.source, "reading": peer.reading} for peer in peers.PEERS
            },
        }
        RESULTS.write_text(
            json.dumps({**about, "errors": errors(rows), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
