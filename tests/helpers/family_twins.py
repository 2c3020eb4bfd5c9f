"""Random small models of the families that differ from a Llama in a detail, twice: transformers'
and ours, with the same weights.
"""

from copy import deepcopy

import torch
from llama_sizes import sizes

from minilora.llama import Config, Llama

SMALL = sizes(vocab=61, hidden=32, ffn=40, layers=3, heads=4, kv_heads=2, context=128) | dict(
    rms_norm_eps=1e-5, initializer_range=0.25, bos_token_id=1, eos_token_id=2, pad_token_id=0
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = dict(use_sliding_window=True, sliding_window=6)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
TOLERANCE = 1e-5  # of logits, as of the Llama's
T = 23  # tokens: more than the windows hold
# name → fields of config.json
KINDS = {
    "qwen2": dict(model_type="qwen2"),
    "qwen2, tied, heads of their own size": dict(
        model_type="qwen2", tie_word_embeddings=True, head_dim=12
    ),
    "qwen2, a window from layer 1 on": dict(model_type="qwen2", max_window_layers=1, **WINDOW),
    "qwen2, yarn": dict(model_type="qwen2", rope_scaling=YARN),
    "qwen3": dict(model_type="qwen3", head_dim=12),
    "qwen3, biased, tied": dict(
        model_type="qwen3", head_dim=8, attention_bias=True, tie_word_embeddings=True
    ),
    "qwen3, a window by layer_types": dict(
        model_type="qwen3",
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **WINDOW,
    ),
    "mistral": dict(model_type="mistral", sliding_window=None, rope_theta=1e6),
    "mistral, a window": dict(model_type="mistral", sliding_window=5),
    "mistral, a window that does not bite": dict(model_type="mistral", sliding_window=4096),
}


def their_model(fields, seed=0):
    """transformers' model of these fields of config.json, its biases not 0 and its norms not 1."""
    import transformers  # tests skip where it is missing

    torch.manual_seed(seed)
    # a copy, for transformers writes rope_theta into the rope that it is given
    config = transformers.AutoConfig.for_model(**deepcopy(SMALL | fields))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def family_twins(kind, seed=0, **changes):
    """transformers' model and ours with the same weights."""
    theirs = their_model(KINDS[kind] | changes, seed)
    ours = Llama(Config.from_hf(theirs.config.to_dict())).eval()
    state = theirs.state_dict()
    if theirs.config.tie_word_embeddings:
        del state["lm_head.weight"]
    ours.load_state_dict(state)
    return theirs, ours


def difference(theirs, ours, ids):
    """The largest between two logits."""
    with torch.no_grad():
        return float((theirs(ids).logits - ours(ids)).abs().max())
