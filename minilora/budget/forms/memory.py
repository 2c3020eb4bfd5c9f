"""What stays in memory whatever the batch: weights, quantization constants, gradients, optimizer
states; and the KV cache.

What it replaces: "four bytes a parameter, times four" and calculators that leave out constants and
the 4,096 rule.
How it works: sums over the model's tensors. For a matrix of n numbers in b bits, blocks of 64:

    indices                 ⌈n·b/8⌉ bytes
    scales                  4·⌈n/64⌉, or with double quantization ⌈n/64⌉ + 4·⌈⌈n/64⌉/256⌉ + 4 (their
                            mean)
    int8 rows               n + 4·rows + 1 (LLM.int8())
    AdamW                   two averages of the parameter's type; in 8 bits 2·n + 2·4·⌈n/256⌉ for
                            n ≥ 4096, else 8·n

Each function gives a `Part`: the bytes, and the formula as text with the numbers filled in.
What it leaves out: what depends on the batch (`activations`) and on the moment (`step_peak`).
Where numerics differ: bytes are exact, as `quantize`, `int8`, `torch.optim` and `bitsandbytes`
store them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...llama.config import ROPE_ROWS
from ..setup import CODES, Setup

NESTED_BLOCK = 256  # scales that share one scale

SMALLEST_8BIT = 4096  # elements: smaller tensors keep fp32 averages (bitsandbytes)

STATE_BLOCK = 256

PAGED_FROM = 100_000  # elements: smaller tensors are not paged (bitsandbytes)

# the signed and the unsigned levels of 8-bit averages, shared by all tensors
CODE_BOOKS = 2 * 256 * 4


@dataclass(frozen=True)
class Part:
    """Bytes of one part, the formula with its numbers filled in, and what it is in a few words.
    host: not on the card.
    """

    bytes: int
    formula: str
    what: str
    host: bool = False


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def quantized_bytes(size: int, setup: Setup) -> tuple[int, int]:
    """(indices, scales and their constants) of a matrix of `size` numbers, as
    `quantize.Quantized.nbytes` counts them.
    """
    indices, blocks = ceil(size * CODES[setup.code], 8), ceil(size, setup.block)
    return indices, blocks + 4 * ceil(blocks, NESTED_BLOCK) + 4 if setup.double else 4 * blocks


def dense_rest(setup: Setup) -> int:
    """Numbers that stay in floating point when the linear layers of the blocks are quantized."""
    return setup.shape.parameters - setup.shape.linear_parameters


def weights(setup: Setup) -> dict[str, Part]:
    """The base model, by how it is kept."""
    shape, width = setup.shape, setup.width
    if setup.base == "dense":
        count = shape.parameters
        return {
            "weights": Part(
                width * count, f"{width} B × {count:,} parameters", f"the model in {8 * width} bits"
            )
        }
    rest, linears = dense_rest(setup), shape.linears()
    head = Part(
        width * rest,
        f"{width} B × {rest:,} parameters",
        "token table, head, norms and biases, not quantized",
    )
    count = shape.linear_parameters
    if setup.base == "int8":
        rows = sum(each.outputs * each.count for each in linears)
        flags = sum(each.count for each in linears)
        return {
            "weights": Part(count, f"1 B × {count:,} weights", "the linear layers in int8"),
            "quantization constants": Part(
                4 * rows + flags,
                f"4 B × {rows:,} rows + 1 B × {flags} layers",
                "row maxima in fp32",
            ),
            "unquantized weights": head,
        }
    indices, scales = (
        sum(quantized_bytes(each.size, setup)[i] * each.count for each in linears) for i in (0, 1)
    )
    bits = CODES[setup.code]
    per = f"1 B + 4/{NESTED_BLOCK} B" if setup.double else "4 B"
    mean = f" + 4 B × {sum(each.count for each in linears)} means" if setup.double else ""
    return {
        "weights": Part(
            indices, f"{bits}/8 B × {count:,} weights", f"the linear layers in {setup.code}"
        ),
        "quantization constants": Part(
            scales, f"({per}) × {count:,}/{setup.block} blocks{mean}", "the scale of each block"
        ),
        "unquantized weights": head,
    }


def adapters(setup: Setup) -> Part:
    """A and B of every target, in fp32 whatever the base is."""
    sides = " + ".join(f"{each.count}·({each.inputs}+{each.outputs})" for each in setup.targeted)
    return Part(
        4 * setup.trainable, f"4 B × r·Σ(in+out) = 4 B × {setup.rank}·({sides})", "A and B in fp32"
    )


def trained_width(setup: Setup) -> int:
    """Bytes of a trained parameter, and of its gradient."""
    return setup.width if setup.whole else 4


def gradients(setup: Setup) -> Part:
    width = trained_width(setup)
    return Part(
        width * setup.trainable,
        f"{width} B × {setup.trainable:,} trained parameters",
        "one gradient for each trained parameter",
    )


def optimizer_states(setup: Setup) -> dict[str, Part]:
    """The averages that the optimizer keeps, on the card and (paged) in the host's memory."""
    n, width = setup.trainable, trained_width(setup)
    if setup.optimizer == "sgd":
        return {"optimizer states": Part(0, "none", "plain SGD remembers nothing")}
    if setup.optimizer == "adamw":
        return {
            "optimizer states": Part(
                2 * width * n, f"2 × {width} B × {n:,} trained parameters", "AdamW's two averages"
            )
        }
    paged = setup.optimizer.startswith("paged")
    card = host = coded = plain = 0
    for _, size, count in setup.tensors():
        small = size < SMALLEST_8BIT
        held = (8 * size if small else 2 * size + 2 * 4 * ceil(size, STATE_BLOCK)) * count
        plain, coded = plain + small * size * count, coded + (not small) * size * count
        out = paged and size >= PAGED_FROM
        # Only the codes are paged; their scales stay on the card.
        host += 2 * size * count if out else 0
        card += held - (2 * size * count if out else 0)
    books = CODE_BOOKS if coded else 0
    formula = (
        f"(2 + 8/{STATE_BLOCK}) B × {coded:,} + 8 B × {plain:,} in tensors below {SMALLEST_8BIT} "
        f"+ {books} B"
    )
    parts = {
        "optimizer states": Part(
            card + books,
            formula + (f" − {host:,} B paged" if host else ""),
            "AdamW's two averages in 8 bits",
        )
    }
    if paged:
        parts["paged states"] = Part(
            host,
            f"2 B × parameters in tensors of {PAGED_FROM:,} or more",
            "averages that may leave the card",
            host=True,
        )
    return parts


def kv_cache(setup: Setup) -> Part:
    """Keys and values of every token seen, for generation."""
    shape, width = setup.shape, setup.product
    total = 2 * width * shape.layers * setup.tokens * shape.key
    return Part(
        total,
        f"2 × {width} B × {shape.layers} layers × {setup.tokens} tokens × {shape.key}",
        "keys and values of all tokens",
    )


def last_logits(setup: Setup) -> Part:
    """Logits of one new token for each row, in fp32 for sampling."""
    return Part(
        4 * setup.batch * setup.shape.vocab,
        f"4 B × {setup.batch} rows × {setup.shape.vocab}",
        "logits of one token in fp32",
    )


def decode_buffer(setup: Setup) -> Part:
    """The largest quantized matrix, decoded for the moment."""
    largest = max(each.size for each in setup.shape.linears())
    return Part(
        setup.product * largest,
        f"{setup.product} B × {largest:,}",
        "the largest matrix, decoded for its product",
    )


def inputs(setup: Setup) -> Part:
    """Ids and labels, and the tables of rotary positions that our Llama holds in fp32."""
    shape, n = setup.shape, setup.tokens
    rows = min(shape.context, ROPE_ROWS)  # the tables grow for longer inputs
    rows = max(setup.seq, 2 * rows) if setup.seq > rows else rows
    tables = 2 * 4 * rows * shape.head_dim if setup.library == "minilora" else 4 * shape.head_dim
    return Part(
        16 * n + tables,
        f"2 × 8 B × {n} ids and labels + {tables:,} B tables",
        "ids, labels, rotary tables",
    )
