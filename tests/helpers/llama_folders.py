"""Small random Llamas as transformers writes them, and rows to teach them."""

from copy import deepcopy

import torch
from llama_sizes import sizes

from minilora.text import IGNORE

VOCABULARY, BOS, EOS = 96, 1, 2
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN = sizes(
    vocab=VOCABULARY, hidden=64, ffn=128, layers=2, heads=4, kv_heads=4, context=64
) | dict(initializer_range=0.15, bos_token_id=BOS, eos_token_id=EOS)


def write(folder, fields, dtype=torch.float32, shard=None, seed=0):
    """The folder of a random Llama, or of the family that `model_type` says, with these fields of
    config.json; its biases, where it has any, are no zeros, and norms of heads no ones.
    """
    import transformers

    torch.manual_seed(seed)
    # a copy, for transformers writes into the rope that it is given
    fields = deepcopy({"model_type": "llama"} | PLAIN | fields)
    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif key.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.to(dtype).save_pretrained(folder, **{"max_shard_size": shard} if shard else {})
    return folder


def rows(count, seed):
    """Questions and answers of unequal length; only answers are learned, with their EOS."""
    dice, found = torch.Generator().manual_seed(seed), []
    for i in range(count):
        ids = torch.randint(3, VOCABULARY, (9 + i % 5,), generator=dice).tolist() + [EOS]
        found.append((ids, [IGNORE] * 4 + ids[4:]))
    return found
