"""`minilora finetune`: the options, and what is printed."""

from __future__ import annotations

import time
from pathlib import Path

from ..recipes.finetune import (
    DEFAULTS,
    LEARNING_RATE,
    MAX_SEQ,
    _train,
    look_at_out,
    probe,
    settle,
    train_config,
)


def add_arguments(parser) -> None:
    def add(flag, text, **more):
        default = DEFAULTS.get(flag.strip("-").replace("-", "_"))
        parser.add_argument(
            flag,
            help=text + (f" (default {default})" if default not in (None, False) else ""),
            **more,
        )

    add("--model", "tiny (the shipped base), a Hugging Face folder, or a Hub name")
    add("--data", "a .jsonl file, or a folder with train.jsonl and valid.jsonl")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the run's folder: adapter or model, metrics.jsonl, loss.png, run.json",
    )
    methods = (
        "lora: adapter over the model as it is; qlora: over a 4-bit copy; int8: over an 8-bit "
        "copy, LLM.int8(); full: all weights"
    )
    add("--method", methods, choices=list(LEARNING_RATE))
    add("--rank", "columns of B, rows of A", type=int)
    add("--alpha", "the adapter's output is scaled by alpha / rank", type=float)
    add("--targets", "all, names such as q_proj,v_proj, or a regular expression for whole paths")
    add("--variant", "lora, rslora or dora", choices=["lora", "rslora", "dora"])
    add("--init", "how A and B start: kaiming, gaussian, loftq, or (method lora alone) pissa")
    add("--dropout", "on the adapter's input", type=float)
    add("--code", "qlora's number format for the base")
    add("--steps", "updates", type=int)
    add("--batch", "rows at once", type=int)
    add("--accumulate", "such batches per update", type=int)
    add(
        "--seq",
        f"longest row in tokens (default: the model's positions, at most {MAX_SEQ})",
        type=int,
    )
    add(
        "--lr",
        "highest learning rate (default "
        + ", ".join(f"{m} {v:g}" for m, v in LEARNING_RATE.items())
        + ")",
        type=float,
    )
    add(
        "--warmup",
        "steps of rising learning rate (default: a twentieth of the run, at most 100)",
        type=int,
    )
    add(
        "--lora-plus",
        "B learns at RATIO times the rate of A, such as 16 (default: at the same)",
        type=float,
        metavar="RATIO",
    )
    add("--weight-decay", "AdamW's", type=float)
    add("--clip", "largest gradient norm, 0: none", type=float)
    add("--seed", "of the adapter's start, the order of the data and dropout", type=int)
    add(
        "--checkpointing",
        "compute activations again in backward: less memory, a third more time",
        action="store_true",
        default=None,
    )
    halves = (
        "auto: bf16 on a GPU that has it, fp16 with loss scaling on an older one such as the T4, "
        "fp32 on a processor"
    )
    add("--precision", halves, choices=["auto", "fp32", "bf16", "fp16"])
    add("--eval-every", "steps between validations, 0: at start and end only", type=int)
    add("--save-every", "steps between saved states", type=int)
    add("--device", "cpu or cuda (default: cuda where there is one)")
    add(
        "--backend",
        "minilora: our own Llama, adapters and quantization; peft: transformers, peft and "
        "bitsandbytes",
        choices=["minilora", "peft"],
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last good state in --out, with its settings",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew where --out holds a run already"
    )


def run(args) -> int:
    from ..errors import Interrupted
    from ..train.run_folder import RunFolder  # torch loads here

    began = time.perf_counter()
    out = Path(args.out)
    probe(out)
    folder_of_run = RunFolder(out, say=print)
    saved = look_at_out(folder_of_run, args.resume, args.overwrite)
    settings = settle(args, saved)
    config = train_config(settings)
    try:
        return _train(settings, config, folder_of_run, args, began)
    except KeyboardInterrupt as error:
        if folder_of_run.found():
            raise Interrupted(
                f"interrupted; go on with: minilora finetune --out {out} --resume"
            ) from error
        raise Interrupted("interrupted before the first step was done; nothing is lost") from error
