"""What the programs behind published peaks kept in memory, by their own source code.

What it replaces: "the rest is overhead".
How it works: a published figure was measured on a program that is not the one `estimate` counts.
Each function here goes through such a program's step as its source stands, and returns the bytes at
its worst instant, part by part; their sum is what that program should have shown. Sizes: N tokens,
h hidden, q and k the widths of queries and keys, f the MLP, a heads, V vocabulary, L layers; 16-bit
numbers unless said otherwise. No constant is fitted; where a source leaves a setting open, the
function's name or docstring says which was taken.

LitGPT (Lightning-AI/litgpt: finetune/lora.py, generate/base.py, lit_gpt/lora.py, lit_gpt/model.py,
lit_gpt/rmsnorm.py, October 2023 to March 2024; bitsandbytes 0.41.1: autograd/_functions.py,
nn/modules.py):
  · the longest row is forced into the first step, when AdamW has no averages yet; everything is
    bf16, the adapter, too
  · every `torch.nn.Linear` is quantized, the head as well; `Params4bit.cuda` quantizes from fp16,
    so each decoding is in fp16 and then cast to bf16: two copies; `MatMul4Bit` keeps its input
    (`ctx.tensors = (A, B)`), which for the product after attention is a copy: flash attention's
    result has the layout of the queries (`empty_like(q)`), heads before tokens
  · queries, keys and values are one matrix, and its result lives while one of them does; the
    adapter's result is padded by `index_copy`, whose backward keeps its source; dropout keeps x
    and a mask of one byte; RMSNorm keeps x in fp32
  · the head works in chunks of 128 tokens, but all 16-bit logits stay, and their log-softmax with
    them
torchtune (pytorch/torchtune 0.3.1: recipes/*_single_device.py and their configs,
modules/transformer.py, modules/attention.py, modules/loss/ce_chunked_output_loss.py; issue 2168,
pull requests 1390 and 1443):
  · adapters and averages are bf16; rotary tables in fp32 for all 131,072 positions; keys and values
    are written out for each query head
  · the logits of 8 chunks stay in 16 bits; the compiled loss keeps no fp32 copy, and makes the
    gradient of one chunk beside them
  · with the step inside the backward pass only the head's gradient stands when it is worst: the
    sum of the chunks so far, and the next
LLaMA-Factory (hiyouga/LLaMA-Factory, April 2024, src/llmtuner; transformers 4.39, peft 0.10,
bitsandbytes 0.43): the peak is ours; what the card shows beside it are blocks that the caching
allocator holds and cannot use. The copy of the logits that transformers before 4.46 asked for
(`shift_logits.contiguous()`) is none at batch 1.

What it leaves out: rounding by the allocator, and what kernels take inside.
Where numerics differ: LitGPT's sums are within 0.3 % of its step at 7B and 13B, rehearsed on
tensors without memory (tests/budget/test_programs.py has a smaller one).
"""

from __future__ import annotations

from ..catalog import CONTEXT
from ..estimate import WORKSPACES
from ..forms import memory
from ..setup import Setup

Parts = dict[str, int]

CHUNK = 128  # LitGPT: tokens whose logits are made at a time

CHUNKS = 8  # torchtune: parts of a row whose logits are made at a time


# What the allocator reserves in two steps of LLaMA-2 7B under QLoRA (rank 8, all layers,
# checkpointed), by length: outcomes of `reserved` below, which takes about 20 s for each; the first
# step alone reserves as much as three do.
RESERVED = {
    1024: 5_481_955_328,
    2048: 6_404_702_208,
    4096: 8_197_767_168,
    8192: 11_817_451_520,
    16384: 19_052_625_920,
    32768: 33_462_157_312,
}


def reserved(setup: Setup) -> int:
    """Bytes in segments after two steps: the ledger's events, replayed through the model of the
    allocator.
    """
    from ..measure.allocator import replay
    from ..measure.ledger import measure

    ledger = measure(setup)
    starts = [at for at, phase in ledger.marks if phase in ("forward", "backward")]
    return replay(ledger.events, starts[:2]).reserved


def _four_bits(size: int, setup: Setup) -> int:
    return sum(memory.quantized_bytes(size, setup))


# ------------------------------------------------------------------------------------------- LitGPT


def _litgpt_weights(setup: Setup) -> Parts:
    shape, packed = setup.shape, setup.base == "4bit"
    rest = 2 * (shape.parameters - shape.linear_parameters - shape.table)  # token table and norms
    linear = (
        sum(_four_bits(each.size, setup) * each.count for each in shape.linears())
        if packed
        else 2 * shape.linear_parameters
    )
    head = _four_bits(shape.table, setup) if packed else 2 * shape.table
    return {
        "linear layers": linear,
        "head": head,
        "token table and norms": rest,
        "workspaces": WORKSPACES,
    }


def _twice_decoded(setup: Setup) -> Parts:
    """The largest matrix in fp16 and again in bf16, with its scales if they are quantized."""
    if setup.base != "4bit":
        return {}
    largest = max(setup.shape.table, *(each.size for each in setup.shape.linears()))
    return {
        "largest matrix decoded, in fp16 and bf16": 4 * largest
        + (4 * largest // setup.block if setup.double else 0)
    }


def litgpt(setup: Setup, predicted: int = 0) -> Parts:
    """finetune/lora.py on queries and values, at the first step and the longest row."""
    s, N = setup.shape, setup.tokens
    h, k, packed = s.hidden, s.key, setup.base == "4bit"
    layer = {
        "norms' inputs in fp32": 2 * 4 * N * h,
        "adapter: x after dropout, mask, x Aᵀ": (2 + 1) * N * h + 4 * setup.rank * N,
        "adapter: what index_copy keeps": 2 * N * (h + k) + 8 * (h + k),
        "queries, keys and values in one": 2 * N * (h + 2 * k),
        "rotated queries and keys, attention": 2 * N * 3 * h + 4 * N * s.heads,
        "MLP: gate, silu(gate), up": 6 * N * s.ffn,
        "inputs of 4-bit layers": 2 * N * (3 * h + s.ffn) * packed,
    }
    passing = _twice_decoded(setup) or {
        "gradient of a chunk of logits, twice": 2 * 2 * setup.batch * CHUNK * s.vocab
    }
    return {
        **_litgpt_weights(setup),
        "adapters, no averages yet": 2 * setup.trainable,
        "rotary tables": 2 * 4 * setup.seq * s.head_dim,
        **{name: size * s.layers for name, size in layer.items()},
        "logits and log-softmax": 2 * 2 * N * s.vocab,
        "last norm and the head's input": (4 + 2 * packed) * N * h,
        **passing,
    }


def litgpt_generates(setup: Setup, predicted: int = 0) -> Parts:
    """generate/base.py: weights, a cache with keys and values for every query head, and the
    prompt's decoded head.
    """
    cache = 2 * 2 * setup.tokens * setup.shape.layers * setup.shape.query
    return {**_litgpt_weights(setup), "cache": cache, **_twice_decoded(setup)}


# ---------------------------------------------------------------------------------------- torchtune


def torchtune(setup: Setup, predicted: int = 0) -> Parts:
    """The recipes for one card: at the worst instant, the head's backward pass."""
    s, N = setup.shape, setup.tokens
    if setup.base == "4bit":  # head and token table stay in 16 bits
        linear = sum(_four_bits(each.size, setup) * each.count for each in s.linears())
        weights = linear + 2 * (s.parameters - s.linear_parameters)
    else:
        weights = 2 * s.parameters
    parts = {
        "weights": weights,
        "rotary tables": 4 * s.context * s.head_dim,
        "workspaces": WORKSPACES,
    }
    logits = 2 * N * s.vocab
    if setup.whole:
        parts |= {
            "scales of the averages": memory.optimizer_states(setup)["optimizer states"].bytes,
            "gradient of the head: the sum so far, and the next": 2 * 2 * s.table,
            "gradients of the logits": logits - logits // CHUNKS,
        }
    else:
        parts |= {
            "adapters and averages": 3 * 2 * setup.trainable,
            "logits": logits,
            "gradient of a chunk": logits // CHUNKS,
        }
    if setup.checkpointing:
        return parts | {"layers' inputs": 2 * N * s.hidden * s.layers}
    compiled = 2 * N * (3 * s.hidden + 4 * s.query + 2 * s.ffn) + 4 * N * s.heads + 8 * N
    return parts | {
        "compiled layers: x, two inputs of products, q, k, v, attention, gate, up": compiled
        * s.layers
    }


def torchtune_offloaded(setup: Setup, predicted: int = 0) -> Parts:
    """The same with `enable_activation_offloading`: layers' inputs wait in the host's memory."""
    return {name: size for name, size in torchtune(setup).items() if name != "layers' inputs"}


# ------------------------------------------------------------------------------------ LLaMA-Factory


def factory(setup: Setup, predicted: int) -> Parts:
    """What the card shows: our peak with the driver's context, and blocks that the allocator holds
    without use.
    """
    return {
        "our prediction": predicted,
        "freed blocks that nothing fits, ends of segments": RESERVED[setup.seq]
        + CONTEXT
        - predicted,
    }
