"""A random small Llama twice: transformers' and ours, with the same weights."""

import random
from copy import deepcopy

import torch

from minilora.llama import Config, Llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def fields(seed):
    """A random small configuration under Hugging Face's names."""
    pick = random.Random(seed)
    groups, per_group = pick.choice([1, 2, 3]), pick.choice([1, 2, 4])
    heads = groups * per_group
    natural = pick.choice([4, 8, 16])
    return dict(
        vocab_size=pick.choice([33, 64, 101]),
        hidden_size=heads * natural,
        intermediate_size=pick.choice([24, 40, 65]),
        num_hidden_layers=pick.choice([1, 2, 3]),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=pick.choice([natural, natural, 6, 12]),
        rms_norm_eps=pick.choice([1e-6, 1e-5]),
        rope_theta=pick.choice([10000.0, 500000.0]),
        rope_scaling=pick.choice([None, None, LLAMA3, {"rope_type": "linear", "factor": 2.0}]),
        max_position_embeddings=128,
        tie_word_embeddings=pick.random() < 0.5,
        attention_bias=pick.random() < 0.3,
        mlp_bias=pick.random() < 0.3,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def twins(seed, **changes):
    """transformers' model and ours with the same weights, biases not zero."""
    import transformers  # tests skip where it is missing

    # a copy, for transformers writes rope_theta into the rope that it is given
    shape = deepcopy(fields(seed) | changes)
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = Llama(Config.from_hf(theirs.config.to_dict())).eval()
    state = theirs.state_dict()
    if shape["tie_word_embeddings"]:
        del state["lm_head.weight"]
    ours.load_state_dict(state)
    return theirs, ours


def tokens(model, batch, length, seed=0):
    return torch.randint(
        3, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)
    )
