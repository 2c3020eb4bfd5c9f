"""Small random models in 4 bits, as transformers and bitsandbytes write them."""

import json

import torch
from llama_sizes import sizes
from safetensors.torch import load_file, save_file

SMALL = sizes(vocab=96, hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, context=64) | dict(
    initializer_range=0.2, bos_token_id=0, eos_token_id=1
)


def dense(folder, family="Llama", dtype=torch.float32, seed=0, **fields):
    """A dense model of a family of transformers; biases and norms are no zeros and ones."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**SMALL | fields)
    model = getattr(transformers, family + "ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, float("norm" in name), 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def packed(source, folder, dtype=torch.float32, shard="5GB", **more):
    """The model in `source` in 4 bits, in files of at most `shard`. more: fields of
    BitsAndBytesConfig.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    } | more
    AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=BitsAndBytesConfig(**four),
        dtype=dtype,
        device_map={"": "cpu"},
    ).save_pretrained(folder, max_shard_size=shard)
    return folder


def theirs(folder):
    """transformers' model of the weights that bitsandbytes decodes, in fp32: its own product on a
    processor rounds to bf16.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}
    )
    return (model.dequantize() if hasattr(model, "hf_quantizer") else model).float().eval()


def rewritten(folder, change):
    """The folder, whose one file holds what `change` makes of its tensors, in place or anew."""
    file = folder / "model.safetensors"
    state = load_file(file)
    found = change(state)
    state = found if isinstance(found, dict) else state
    state = {key: each.contiguous().clone() for key, each in state.items()}
    save_file(state, file, {"format": "pt"})
    return folder


def reconfigured(folder, name="config.json", **fields):
    """Fields of a JSON file set; None takes one out."""
    file = folder / name
    told = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: each for key, each in told.items() if each is not None}))
    return folder
