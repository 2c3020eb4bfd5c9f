"""SmolLM2-135M in NF4, one token at a time in C++: the tokens of decode-then-multiply."""

import pytest
import torch

from minilora.llama import Llama, compiled_token
from minilora.qlora.four_bit import quantize_model
from minilora.system import cpp
from minilora.text.prompts import encode_prompt

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here"),
]

STARTS = ("Write one sentence about", "What is", "Who invented", "Translate to French:")
ENDS = (
    "rain",
    "a prime",
    "the telephone",
    "bread",
    "2 + 2",
    "the sea",
    "music",
    "a loop",
    "ice",
    "",
)


def test_greedy_tokens_of_forty_prompts_in_nf4(folder, tokenizer, monkeypatch):
    """The plain way takes eight prompts at once, for time's sake, which pads them on the left."""
    model = quantize_model(Llama.from_pretrained(folder))
    prompts = [encode_prompt(f"{start} {end}", tokenizer) for end in ENDS for start in STARTS]
    monkeypatch.setenv("MINILORA_COMPILE", "always")
    given = [model.generate(torch.tensor([ids]), 8, stop=[])[0, len(ids) :] for ids in prompts]
    assert compiled_token.state.library is not None
    monkeypatch.setenv("MINILORA_COMPILE", "never")
    for start in range(0, len(prompts), 8):
        rows = prompts[start : start + 8]
        longest = max(map(len, rows))
        ids, mask = (
            torch.zeros(8, longest, dtype=torch.long),
            torch.zeros(8, longest, dtype=torch.long),
        )
        for row, real, prompt in zip(ids, mask, rows):
            row[-len(prompt) :], real[-len(prompt) :] = torch.tensor(prompt), 1
        wanted = model.generate(ids, 8, attention_mask=mask, stop=[])[:, longest:]
        assert torch.equal(torch.stack(given[start : start + 8]), wanted)
