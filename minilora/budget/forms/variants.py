"""What dropout and DoRA add to a step of LoRA: closed forms that lie a little above what stands.

What it replaces: leaving both out of a forecast.
How it works: both go down the plain path of `lora.layer` (`detour="plain"`), which `estimate`
counts; what they keep or make beside it, for each adapted layer of sizes in × out on N tokens, c
bytes in a product:

    dropout      its mask: m·N·in, m = 1 on a card, 4 on a processor, whose mask is in fp32; the
                 dropped x takes the place of the fp32 copy of x that is counted already, or, where
                 x is fp32 itself, stands beside it: 4·N·in
    DoRA         W x and B(A x) for the gradient of the magnitudes: (c + 4)·N·out; the magnitudes
                 and their AdamW: 16·out, and √v̂
    both         W in fp32, which the product with the dropped x keeps: 4·in·out, and that product
                 in fp32: (4 − c)·N·out more
    on the way   of one layer, dropout: two gradients of x in fp32; DoRA: W in fp32, B A, s·B A and
                 their sum, beside W decoded: (4 · 4 + c)·in·out, and three results in fp32

Under checkpointing only one block at a time holds what is kept.
What it leaves out: other variants, which are trained as LoRA is.
Where numerics differ: a bound: what is made on the way seldom stands at the worst instant. With it
a forecast lies 0 to 33 % above what the ledger sees of small models (tests/budget), where without
it lies up to 67 % below.
"""

from __future__ import annotations

from ..setup import Setup


def added(setup: Setup, variant: str = "lora", dropout: float = 0.0) -> int:
    """Bytes that dropout and DoRA add at most to `estimate(setup).peak_allocated`, setup being of
    the plain path.
    """
    dora, drops = variant == "dora", dropout > 0
    if not setup.adapters or not (dora or drops):
        return 0
    N, c = setup.tokens, setup.product
    dropped = (1 if setup.device == "cuda" else 4) + 4 * (setup.width == 4 and not setup.autocast)
    kept = passing = trained = 0
    for each in setup.targeted:
        held = drops * dropped * N * each.inputs + dora * (c + 4) * N * each.outputs
        held += (dora and drops) * (4 * each.size + (4 - c) * N * each.outputs)
        kept += held * (1 if setup.checkpointing else each.count)
        passing = max(
            passing,
            drops * 2 * 4 * N * each.inputs
            + dora * ((4 * 4 + c) * each.size + 3 * 4 * N * each.outputs),
        )
        trained += dora * (16 + 4 * setup.foreach) * each.outputs * each.count
    return kept + passing + trained
