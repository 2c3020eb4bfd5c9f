"""Short trainings of a tiny model."""

import torch

from minilora import lora, train

EXAMPLES = [
    {"prompt": f"say {word}{'!' * (i % 5)}", "response": word * (1 + i % 3)}
    for i, word in enumerate("abcdefgh" * 3)
]


def with_adapter(model, **settings):
    torch.manual_seed(0)
    return lora.add_lora(model, rank=4, **settings)


def quiet(model, rows, **settings):
    return train.fit(
        model, rows, **{"steps": 8, "batch_size": 4, "lr": 1e-2, "progress": False, **settings}
    )


def states_equal(a, b):
    a, b = lora.adapter_state(a), lora.adapter_state(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def moving_scale(monkeypatch, begin):
    """A loss scale that begins too high for fp16 and grows every third step, so that it moves
    within a few steps.
    """
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *a, **k: real(*a, init_scale=begin, growth_interval=3, **k)
    )
