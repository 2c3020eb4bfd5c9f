"""Small Llamas and the adapters that PEFT writes for them, and both answers to one folder."""

import copy
import functools
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from llama_sizes import sizes

from minilora import lora
from minilora.llama import Llama

IDS = torch.tensor([[1, 5, 2, 9, 30], [3, 3, 0, 10, 47]])
SIZES = sizes(vocab=48, hidden=24, ffn=40, layers=2, heads=4, kv_heads=2, context=32) | dict(
    initializer_range=0.2, pad_token_id=None
)


def llama(seed=1, tied=False, vocab=48, **others):
    """transformers' Llama with random weights."""
    torch.manual_seed(seed)
    fields = SIZES | dict(vocab_size=vocab, tie_word_embeddings=tied) | others
    config = transformers.LlamaConfig(**fields)
    return transformers.LlamaForCausalLM(config).eval()


@functools.cache
def _folder(seed, tied, vocab):
    folder = Path(tempfile.mkdtemp(prefix="little-"))
    llama(seed, tied, vocab).save_pretrained(folder)
    return folder


def our_llama(seed=1, tied=False, vocab=48):
    """The same model in our Llama."""
    return Llama.from_pretrained(_folder(seed, tied, vocab))


def write_adapter(model, folder, seed=0, saving=None, named=None, **settings):
    """What PEFT saves of an adapter with random numbers on `model`; returns the PeftModel."""
    torch.manual_seed(seed)
    usual = dict(r=4, lora_alpha=6, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = peft.get_peft_model(model, peft.LoraConfig(**(usual | settings)))
        for parameter in twin.parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        if named:
            twin.peft_config["default"].base_model_name_or_path = str(named)
        twin.eval().save_pretrained(folder, **(saving or {}))
    return twin


def ours(folder, model=None, **base):
    """Logits of our Llama with the adapter in `folder`, or of `model`."""
    model = model or our_llama(**base)
    model = lora.load_adapter(model, folder).eval()
    with torch.no_grad():
        answer = model(IDS)
    return getattr(answer, "logits", answer)


@functools.cache
def _theirs(seed, tied, vocab):
    return llama(seed, tied, vocab)


def theirs(folder, seed=1, tied=False, vocab=48):
    """Logits of PEFT with that adapter. Raises ValueError where it only warns of missing keys."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = copy.deepcopy(_theirs(seed, tied, vocab))
        answer = peft.PeftModel.from_pretrained(model, folder).eval()(IDS).logits
    if any("missing adapter keys" in str(each.message) for each in told):
        raise ValueError("PEFT misses keys")
    return answer
