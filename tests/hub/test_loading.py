"""Any folder of a Llama or its kin, fine-tuned in both stacks from the same adapter: transformers +
peft + bitsandbytes beside ours.

Tolerance: losses of about 5 nats agree within 2e-5, relative 4e-6, in fp32 over a dense base
(measured: at most 1.2e-6). Over a 4-bit base the same holds (5.6e-6): the bytes are equal, and the
numbers that they decode to up to one rounding of the nested scales. What is left is the order of
additions (PEFT adds the base's output and the adapter's where ours adds inside the product; the
logits of masked positions are computed there and not here), which AdamW, dividing by √v, can make
larger from step to step where a gradient is near zero.
"""

import pytest
import torch
from llama_folders import EOS, LLAMA3, rows, write
from safetensors.torch import load_file

from minilora import hub, lora
from minilora.llama import Llama
from minilora.train import fit
from minilora.train.loss import evaluate_loss

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 2e-5
FOLDERS = {  # name -> (fields of config.json, type of the weights, bytes in a shard)
    "llama 2": ({}, torch.float32, None),
    "llama 3, scaled": ({"num_key_value_heads": 2, "rope_parameters": LLAMA3}, torch.float32, None),
    "linear scaling": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        torch.float32,
        None,
    ),
    "tied": ({"tie_word_embeddings": True}, torch.float32, None),
    "one key head": ({"num_key_value_heads": 1, "head_dim": 24}, torch.float32, None),
    "sharded": ({}, torch.float32, "40KB"),
    "bf16": ({"num_key_value_heads": 2}, torch.bfloat16, None),
    "fp16, tied": ({"tie_word_embeddings": True}, torch.float16, None),
    # multiples of 16: bitsandbytes' trap
    "hidden 48": ({"hidden_size": 48, "intermediate_size": 80}, torch.float32, None),
    "hidden 40, biased": (
        {"hidden_size": 40, "intermediate_size": 72, "attention_bias": True, "mlp_bias": True},
        torch.bfloat16,
        None,
    ),
    "qwen 2, biased": ({"model_type": "qwen2", "num_key_value_heads": 2}, torch.float32, None),
    "qwen 3, tied": (
        {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
        torch.float32,
        None,
    ),
    "mistral, windowed": (
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6},
        torch.bfloat16,
        None,
    ),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """name -> folder, as transformers writes it; made once."""
    made = {}

    def folder(name):
        if name not in made:
            fields, dtype, shard = FOLDERS[name]
            made[name] = write(
                tmp_path_factory.mktemp("llama"), fields, dtype, shard, seed=len(made)
            )
        return made[name]

    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_is_what_its_name_says(make, name):
    fields, dtype, shard = FOLDERS[name]
    config, files = (
        transformers.AutoConfig.from_pretrained(make(name)),
        sorted(make(name).glob("*.safetensors")),
    )
    assert len(files) > 3 if shard else len(files) == 1
    state = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in state.values()} == {dtype} and (
        "lm_head.weight" in state
    ) != bool(fields.get("tie_word_embeddings"))
    assert all(getattr(config, key) == value for key, value in fields.items()) and any(
        "bias" in key for key in state
    ) == ("biased" in name)


TRAIN, VALID = rows(12, 0), rows(6, 1)


def learn(model):
    return fit(
        model,
        TRAIN,
        steps=4,
        batch_size=4,
        accumulate=2,
        lr=1e-2,
        warmup=0,
        seed=3,
        valid=VALID,
        eval_every=2,
        progress=False,
    )


def both(folder, method, tmp_path, checkpointing=False):
    """(ours, theirs) with the same adapter, whose two matrices are both random."""
    torch.manual_seed(7)
    ours = lora.add_lora(
        hub.load(folder, method, stack="minilora", device="cpu"), rank=4, alpha=8, init="random"
    )
    lora.save_adapter(ours, tmp_path / "start")
    theirs = hub.load_adapter(
        hub.load(folder, method, device="cpu"), tmp_path / "start", trainable=True
    )
    return ours, theirs


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("name", FOLDERS)
def test_both_stacks_lose_alike_and_exchange_their_adapters(make, tmp_path, name, method):
    folder = make(name)
    ours, theirs = both(folder, method, tmp_path)
    mine, others = learn(ours), learn(theirs)
    torch.testing.assert_close(mine.losses, others.losses, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        [loss for _, loss in mine.valid_losses],
        [loss for _, loss in others.valid_losses],
        rtol=0,
        atol=TOLERANCE,
    )
    assert mine.losses[-1] < mine.losses[0] - 0.1, (
        "too little was learned for the comparison to say anything"
    )

    lora.save_adapter(ours, tmp_path / "ours")
    hub.save_adapter(theirs, tmp_path / "theirs")
    again = lora.load_adapter(
        hub.load(folder, method, stack="minilora", device="cpu"), tmp_path / "theirs"
    )
    there = hub.load_adapter(hub.load(folder, method, device="cpu"), tmp_path / "ours")
    assert evaluate_loss(again, VALID) == pytest.approx(evaluate_loss(theirs, VALID), abs=TOLERANCE)
    assert evaluate_loss(there, VALID) == pytest.approx(evaluate_loss(ours, VALID), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["llama 2", "hidden 48"])
def test_int8_loses_alike_in_training(make, tmp_path, name):
    """In train mode both multiply with what the 8-bit weights decode to; validation, with rounded
    activations, is compared in test_int8.
    """
    ours, theirs = both(make(name), "int8", tmp_path)
    mine, others = (
        fit(model, TRAIN, steps=4, batch_size=4, lr=1e-2, warmup=0, progress=False).losses
        for model in (ours, theirs)
    )
    torch.testing.assert_close(mine, others, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama 2", "tied"])
def test_full_fine_tuning_loses_alike(make, name):
    ours = hub.load(make(name), "full", stack="minilora", device="cpu")
    theirs = hub.load(make(name), "full", device="cpu")
    mine, others = (
        fit(model, TRAIN, steps=3, batch_size=4, lr=1e-3, warmup=0, progress=False).losses
        for model in (ours, theirs)
    )
    # every weight takes part, and its near-zero gradients
    torch.testing.assert_close(mine, others, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
@pytest.mark.parametrize("targets", ["all", ["q_proj", "v_proj"], r".*layers\.1\..*(up|down)_proj"])
def test_one_seed_is_one_adapter_in_both(make, tmp_path, init, targets):
    """prepare means what add_lora means: the same layers, rank, scale and first numbers, and the
    generator goes on alike.
    """
    models, marks = [], []
    for stack, attach in (("minilora", lora.add_lora), ("transformers", hub.prepare)):
        model = hub.load(make("llama 3, scaled"), "qlora", stack=stack, device="cpu")
        torch.manual_seed(11)
        models.append(attach(model, 4, 12, targets, init=init, variant="rslora"))
        marks.append(torch.rand(3))
    hub.save_adapter(models[1], tmp_path / "theirs")
    again = lora.load_adapter(
        hub.load(make("llama 3, scaled"), "qlora", stack="minilora", device="cpu"),
        tmp_path / "theirs",
    )
    mine, others = lora.adapter_state(models[0]), lora.adapter_state(again)
    assert mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)
    assert {layer.scale["default"] for layer in lora.adapted_layers(again).values()} == {6.0}
    assert torch.equal(*marks) and hub.count_parameters(models[1]) == lora.count_parameters(
        models[0]
    )


def test_checkpointing_changes_no_number_and_the_head_stays(make):
    """And something learns: without gradients at the input, the reentrant kind would train
    nothing.
    """
    losses = []
    for on in (False, True):
        model = hub.load(make("bf16"), "qlora", device="cpu")
        head = model.lm_head.weight
        torch.manual_seed(0)
        model = hub.prepare(model, 4, 8, checkpointing=on)
        assert model.get_base_model().lm_head.weight is head and not head.requires_grad
        losses.append(
            fit(
                model,
                TRAIN,
                steps=3,
                batch_size=12,
                lr=1e-2,
                warmup=0,
                checkpointing=on,
                progress=False,
            ).losses
        )
        assert model.get_base_model().is_gradient_checkpointing == on
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


def test_it_answers_like_ours(make, tmp_path):
    """Greedy continuations of left-padded questions, the stop token, and the stream of tokens."""
    ours, theirs = both(make("llama 3, scaled"), "lora", tmp_path)
    learn(ours), learn(theirs)
    ids = torch.tensor([[0, 0, 5, 9, 11], [7, 8, 9, 10, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    speaker = hub.answering(theirs.eval())
    wanted = ours.eval().generate(ids, 8, attention_mask=mask, stop=EOS)
    found = speaker.generate(ids, 8, attention_mask=mask, stop=EOS)
    assert torch.equal(wanted, found[:, : wanted.shape[1]])
    heard = []
    row = speaker.generate(ids[1:], 4, stop=[EOS], on_token=heard.append)
    assert [token for tokens in heard for token in tokens] == row[0, 5:].tolist()
    assert torch.equal(
        speaker.generate(ids[1:], 6, 0.9, top_k=20, seed=4),
        speaker.generate(ids[1:], 6, 0.9, top_k=20, seed=4),
    )


@pytest.mark.parametrize("name", ["tied", "qwen 2, biased", "qwen 3, tied", "mistral, windowed"])
def test_a_whole_model_goes_back_and_forth(make, tmp_path, name):
    model = hub.load(make(name), "full", device="cpu")
    hub.save_model(model, tmp_path / "out")
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        torch.testing.assert_close(
            Llama.from_pretrained(tmp_path / "out")(ids), model(ids).logits, rtol=0, atol=TOLERANCE
        )
