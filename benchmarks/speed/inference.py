"""The int8 forward pass beside bitsandbytes', and generation beside transformers'.

What it replaces: nothing; `cpu.py` puts these rows into its table.
How it works: LLM.int8() in evaluation mode, where the product is one of integers, under the same
transformers' Llama; the floor is the forward pass of the float model. Generation is greedy, with a
cache, one row, on the shipped base; the tokens are compared before anything is timed. Its floor is
the bare products of each token with all weights, one after another.
What it leaves out: sampling, batches, padded prompts.
Where numerics differ: see `int8.py`; in generation nowhere, the tokens are equal.
"""

from __future__ import annotations

import copy
import tempfile

import torch
from torch.nn import functional as F

from benchmarks.kit.measure import Row, interleaved, median_ms, ratio
from benchmarks.speed.steps import Shape, dense_model


def int8_rows(threads: int, shape: Shape, rounds: int) -> list[Row]:
    """Logits of one batch, the linear layers in int8."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from minilora.qlora.int8 import quantize_model_int8

    dense = dense_model(shape, torch.float32).eval()
    ours = quantize_model_int8(copy.deepcopy(dense)).eval()
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        ).eval()
    ids = torch.randint(
        0, shape.vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        one, other = ours(ids).logits, theirs(ids).logits
        assert (one - other).norm() < 0.02 * other.norm()
        seconds = interleaved(
            {"floor": lambda: dense(ids), "ours": lambda: ours(ids), "peer": lambda: theirs(ids)},
            rounds,
        )
    share, spread = ratio(seconds, "ours", "peer")
    beside = (
        f"{ratio(seconds, 'ours', 'floor')[0]:.2f} fp32 forwards (peer "
        f"{ratio(seconds, 'peer', 'floor')[0]:.2f})"
    )
    return [
        Row(
            "int8 forward",
            threads,
            "ms",
            median_ms(seconds, "ours"),
            median_ms(seconds, "peer"),
            "bitsandbytes",
            share,
            "{:.2f} of its time",
            None,
            beside,
            spread,
        )
    ]


def generation_rows(threads: int, prompt: int, tokens: int, rounds: int) -> list[Row]:
    """Greedy continuation of `prompt` ids by `tokens`, on the shipped base in fp32; no row without
    a base.
    """
    from transformers import AutoModelForCausalLM

    from minilora.llama import Llama
    from minilora.system.files import data_folder

    folder = data_folder() / "base"
    if not (folder / "model.safetensors").exists():
        print("  generation skipped: there is no data/base", flush=True)
        return []
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # both go on to the last token
    ours = Llama.from_pretrained(folder).eval()
    ids = torch.randint(
        5, ours.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(1)
    )
    options = {
        "max_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }

    def peer():
        return theirs.generate(ids, **options)

    def own():
        return ours.generate(ids, tokens, stop=[])

    assert torch.equal(own(), peer())
    weights = [module.weight for module in ours.modules() if isinstance(module, torch.nn.Linear)]
    weights.append(ours.model.embed_tokens.weight)  # the head, tied
    inputs = {weight.shape[1]: torch.randn(1, weight.shape[1]) for weight in weights}

    def products():
        for _ in range(tokens):
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    with torch.inference_mode():
        seconds = interleaved({"floor": products, "ours": own, "peer": peer}, rounds)
    faster, spread = ratio(seconds, "peer", "ours")
    share = ratio(seconds, "floor", "ours")[0]
    each = tokens * 1e3
    return [
        Row(
            f"generate {tokens} tokens with the cache",
            threads,
            "tokens/s",
            each / median_ms(seconds, "ours"),
            each / median_ms(seconds, "peer"),
            "transformers",
            faster,
            "{:.2f} × the tokens",
            1.5,
            f"{share:.0%} of the bare products' speed",
            spread,
        )
    ]
