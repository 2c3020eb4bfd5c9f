"""The numbers behind the fits-or-not slider of lesson 03."""

import pytest

from minilora.budget import catalog, estimate
from minilora.course.explore import fits


@pytest.mark.parametrize("method, bits", fits.SETTINGS)
def test_one_gpu_needs_what_the_budget_says(method, bits):
    for name in ("tinyllama-1.1b", "llama-2-70b"):
        told = estimate(name, foreach=False, **fits.SETTINGS[method, bits])
        for card in map(catalog.gpu, fits.CARDS):
            parts = fits.share(told, card, 1)
            assert sum(parts.values()) == told.needs(card) and min(parts.values()) >= 0
            assert tuple(parts) == fits.PARTS


@pytest.mark.parametrize("method, bits", fits.SETTINGS)
def test_a_split_holds_its_share_and_what_stays_whole(method, bits):
    told = estimate("llama-2-7b", foreach=False, **fits.SETTINGS[method, bits])
    card = catalog.gpu("H200")
    needs = [sum(fits.share(told, card, count).values()) for count in fits.COUNTS]
    assert needs == sorted(needs, reverse=True)
    one, many = fits.share(told, card, 1), fits.share(told, card, 64)
    assert many["weights"] == pytest.approx(one["weights"] / 64) and many[
        "optimizer states"
    ] == pytest.approx(one["optimizer states"] / 64)
    layer = (
        told.setup.shape.linear_parameters
        / told.setup.shape.layers
        * {"4": 0.5, "8": 1, "16": 2, "32": 4, "32 + 16": 4}[bits]
    )
    # a layer, and its gradient where it trains
    assert many["activations and temporaries"] >= layer * (2 if method == "full fine-tuning" else 1)
    assert one["gradients"] == pytest.approx(
        told.parts["gradients"].bytes if told.setup.whole else one["gradients"]
    )


def test_sixteen_bytes_a_parameter_on_four_cards():
    """Full fine-tuning in fp32 splits 16 bytes a parameter evenly, and Llama-2-70B does not fit
    four cards of 80 GB.
    """
    told = estimate("llama-2-70b", method="full", foreach=False)
    parts = fits.share(told, catalog.gpu("A100 80"), 4)
    state = sum(parts[name] for name in ("weights", "gradients", "optimizer states"))
    assert state == pytest.approx(4 * told.parameters, rel=1e-3)
    label, picture = fits.render(
        fits.compute("llama-2-70b", "32", "full fine-tuning", "A100 80", 4)
    )
    assert "does not fit" in label and "✗ 28" in picture


def test_what_cannot_be_trained_is_said():
    label, picture = fits.render(fits.compute("llama-2-7b", "4", "full fine-tuning", "T4", 1))
    assert "no such thing" in label and "✓" not in picture and "✗" not in picture
    assert not fits.suffices("smollm2-360m", "4", "full fine-tuning", "B200", 64)
    label, picture = fits.render(fits.compute("llama-2-7b", "4", "LoRA", "T4", 1))
    assert "it fits" in label and "✓" in picture
    assert fits.suffices("llama-2-7b", "4", "LoRA", "T4") and not fits.suffices(
        "llama-2-13b", "16", "LoRA", "T4"
    )


def test_a_gathered_layer_is_its_weights_and_its_gradient_where_it_trains():
    shape = catalog.model("llama-2-7b")
    layer = shape.linear_parameters // shape.layers
    for method, each in {"full": 8, "full-bf16": 4, "lora": 2, "inference": 2}.items():
        assert fits._gathered(estimate("llama-2-7b", method=method)) == each * layer
