"""One token in C++: beside the Python step, the general forward and transformers; called when it
pays, and done without where it cannot be had.
"""

import pytest
import torch
from family_twins import KINDS, family_twins
from llama_twins import tokens
from small_lora import scramble

from minilora import lora, qlora
from minilora.errors import MiniloraError
from minilora.llama import Cache, Config, Llama, Stepper, compiled_token
from minilora.llama.compiled_token import CompiledStepper, State, stepper
from minilora.qlora.int8 import quantize_model_int8
from minilora.system import cpp

T = 23  # tokens: more than a family's window holds

pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def built():
    library = cpp.build(compiled_token.SOURCE)
    assert library is not None
    return library


@pytest.fixture(autouse=True)
def always(monkeypatch, built):
    """Built once for all of these tests."""
    monkeypatch.setenv("MINILORA_COMPILE", "always")
    monkeypatch.setattr(compiled_token, "state", State())
    monkeypatch.setattr(cpp, "build", lambda source: built)


def small(seed=0, **fields):
    """A Llama whose layers are packed as they are: rows of whole blocks."""
    torch.manual_seed(seed)
    usual = dict(
        vocab_size=61,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = Llama(Config(**usual | fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # no bias is 0, no norm's weight 1
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def with_adapter(model, **options):
    return scramble(lora.add_lora(model, **options))


MODELS = {
    "fp32": small,
    "nf4": lambda: qlora.quantize_model(small()),
    "fp4, scales in fp32": lambda: qlora.quantize_model(small(), "fp4", double=False),
    "lora": lambda: with_adapter(small()),
    "qlora": lambda: with_adapter(qlora.quantize_model(small()), rank=3),
    "some layers": lambda: with_adapter(small(), targets=["q_proj", "down_proj"]),
    "a silent adapter": lambda: silenced(with_adapter(small())),
    "biases everywhere": lambda: small(attention_bias=True, mlp_bias=True),
    "a stretched rope": lambda: small(rope_scaling={"rope_type": "linear", "factor": 4.0}),
}


def silenced(model):
    for layer in lora.adapted_layers(model).values():
        layer.disabled = True
    return model


def padded(ids, lengths):
    """A mask of the last `length` tokens of each row, with room for all that are to come."""
    mask = torch.zeros(len(ids), ids.shape[1], dtype=torch.long)
    for row, length in zip(mask, lengths):
        row[-length:] = 1
    return mask


def one_by_one(model, ids, prompt, real, made):
    """Hidden vectors of the tokens behind the prompt, by the step that `made` gives."""
    cache = Cache(ids.shape[1])
    with torch.no_grad():
        model.model(ids[:, :prompt], None if real is None else real[:, :prompt], cache)
        step = made(model.model, cache, real)
        found = torch.cat([step(ids[:, at]) for at in range(prompt, ids.shape[1])], dim=1)
    assert cache.length == ids.shape[1]
    return found, step


def compiled_step(decoder, cache, real):
    return stepper(decoder, cache, real, 1)


@pytest.mark.parametrize("lengths", [None, (20, 7, 13)], ids=["full rows", "padded rows"])
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_the_python_step(name, lengths):
    model = MODELS[name]()
    ids = tokens(model, 1 if lengths is None else 3, 20)
    real = None if lengths is None else padded(ids, lengths)
    given, step = one_by_one(model, ids, 14, real, compiled_step)
    assert type(step) is CompiledStepper
    wanted, _ = one_by_one(model, ids, 14, real, Stepper)
    assert (given - wanted).abs().max() <= 2e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_each_family_equals_its_general_forward(kind):
    pytest.importorskip("transformers")
    _, ours = family_twins(kind)
    ids = tokens(ours, 2, T)
    if any(window and window < T for window in ours.model.windows):
        assert stepper(ours.model, Cache(T), None, 1) is None
        return
    given, step = one_by_one(ours, ids, 4, None, compiled_step)
    assert type(step) is CompiledStepper
    with torch.no_grad():
        assert (given - ours.model(ids)[:, 4:]).abs().max() <= 1e-5


@pytest.mark.parity
def test_greedy_tokens_of_forty_prompts_are_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = small(3, num_attention_heads=4, num_key_value_heads=2)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    for seed in range(40):
        ids = tokens(ours, 1, 3 + seed % 9, seed)
        mask = torch.ones_like(ids)
        wanted = theirs.generate(ids, attention_mask=mask, max_new_tokens=10, **options)
        assert torch.equal(ours.generate(ids, 10, stop=[]), wanted), seed
    assert compiled_token.state.library is not None


def test_two_threads_have_the_bits_of_one():
    model, before = MODELS["qlora"](), torch.get_num_threads()
    ids, found = tokens(model, 2, 8), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cache = Cache(8)
            with (
                torch.no_grad()
            ):  # the cache is filled by hand, since threads may change the prompt's bits
                model.model(ids[:, :7] * 0, None, cache)
                for pair in cache.layers.values():
                    for each in pair:
                        each.copy_(torch.linspace(-1, 1, each.numel()).view_as(each))
                found.append(stepper(model.model, cache, None, 1)(ids[:, 7]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["nf4", "qlora"])
def test_greedy_tokens_of_forty_prompts_are_those_of_decoded_weights(name, monkeypatch):
    model = MODELS[name]()
    prompts = [tokens(model, 1, 3 + seed % 9, seed) for seed in range(40)]
    given = [model.generate(ids, 8, stop=[]) for ids in prompts]
    monkeypatch.setenv("MINILORA_COMPILE", "never")
    for ids, text in zip(prompts, given):
        assert torch.equal(model.generate(ids, 8, stop=[]), text)


def test_a_row_has_the_same_tokens_in_company():
    model = MODELS["qlora"]()
    ids = tokens(model, 4, 12)
    mask = padded(ids, (12, 3, 8, 5))
    together = model.generate(ids, 9, attention_mask=mask, stop=[])
    for row, real, text in zip(ids, mask, together):
        own = row[real.bool()]
        assert torch.equal(model.generate(own[None], 9, stop=[])[0], text[12 - len(own) :])


# --------------------------------------------------------------------------- what is left to Python


def dora():
    return with_adapter(small(), variant="dora")


def in_16_bits():
    return small().bfloat16()


def two_adapters():
    model = with_adapter(small())
    lora.add_lora(model, name="second")
    lora.use_adapter(model, ["default", "second"])
    return model


def rounded():
    model = qlora.quantize_model(small())
    model.model.layers[0].mlp.up_proj.rounds_to = torch.bfloat16
    return model


LEFT = {
    "bf16": in_16_bits,
    "int8": lambda: quantize_model_int8(small()),
    "DoRA": dora,
    "two adapters": two_adapters,
    "rounded on its way": rounded,
    "blocks over the end of a row": lambda: qlora.quantize_model(small(hidden_size=96), block=64),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_fit_goes_through_python(name):
    model = LEFT[name]()
    assert compiled_token.layer_forms(model.model) is None
    assert type(stepper(model.model, Cache(9), None, 5)) is Stepper
    model.generate(tokens(model, 1, 4), 3, stop=[])


def test_norms_in_16_bits_go_through_python():
    model = small()
    model.model.layers[1].post_attention_layernorm.bfloat16()
    assert compiled_token.layer_forms(model.model) is None
    assert type(stepper(model.model, Cache(9), None, 5)) is Stepper


def test_so_does_a_mask_with_a_hole_and_autocast():
    model, real = small(), torch.ones(2, 9, dtype=torch.long)
    assert type(stepper(model.model, Cache(9), real, 5)) is CompiledStepper
    real[1, 2] = 0
    assert type(stepper(model.model, Cache(9), real, 5)) is Stepper
    with torch.autocast("cpu", torch.bfloat16):
        assert type(stepper(model.model, Cache(9), None, 5)) is Stepper


def test_many_rows_go_through_python(monkeypatch):
    calls, model = [], small()
    monkeypatch.setattr(Stepper, "__call__", counted(calls, Stepper.__call__))
    for rows in (compiled_token.MOST_ROWS, compiled_token.MOST_ROWS + 1):
        model.generate(tokens(model, rows, 4), 3, stop=[])
    assert calls == [compiled_token.MOST_ROWS + 1] * 2


def counted(calls, real):
    def call(self, token):
        calls.append(len(token))
        return real(self, token)

    return call


def test_a_full_cache_is_told():
    model, cache = small(), Cache(5)
    ids = tokens(model, 1, 5)
    with torch.no_grad():
        model.model(ids, None, cache)
        with pytest.raises(MiniloraError, match="holds 5 tokens and 6 are needed"):
            stepper(model.model, cache, None, 1)(ids[:, 0])


# -------------------------------------------------------------------------------- when it is built


def test_the_compiler_is_called_when_it_has_paid(monkeypatch):
    monkeypatch.setattr(compiled_token, "BUILDING_COSTS", 2.5 * 10 * 2 * compiled_token.LAYER_COSTS)
    model = small()
    for wanted, after in (("never", None), ("auto", 3), ("always", 1)):
        monkeypatch.setenv("MINILORA_COMPILE", wanted)
        monkeypatch.setattr(compiled_token, "state", State())
        kinds = [type(stepper(model.model, Cache(9), None, 10)) for _ in range(5)]
        ready = [kind is CompiledStepper for kind in kinds]
        assert ready == [after is not None and call >= after for call in range(1, 6)]


def test_packed_weights_are_waited_for_longer():
    dense, packed = small(), qlora.quantize_model(small())
    lost = [compiled_token.layer_forms(model.model).lost for model in (dense, packed)]
    numbers = sum(layer.quantized.size for layer in packed.modules() if hasattr(layer, "quantized"))
    assert lost[1] - lost[0] == pytest.approx(numbers * compiled_token.NUMBER_COSTS)


def test_without_a_compiler_python_goes_on_and_does_not_ask_twice(monkeypatch):
    tries, model = [], small()
    monkeypatch.setattr(cpp, "build", lambda source: tries.append(source))
    for _ in range(3):
        model.generate(tokens(model, 1, 4), 3, stop=[])
    assert tries == [compiled_token.SOURCE]


# ------------------------------------------------------------------- that these tests see something


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, old, new",
    [
        ("llama/one_token.cpp", "b * sin[i]", "a * sin[i]"),
        ("llama/one_token.cpp", "each % H / (H / G)", "each % G"),
        ("llama/one_token.cpp", "from = step.start[b]", "from = 0"),
        ("llama/one_token.cpp", "step.seen + 1 - from", "step.seen - from"),
        ("llama/one_token.cpp", "/ size + epsilon", "/ size + 1e-2f"),
        ("llama/one_token.cpp", "if (layer.k_norm)", "if (layer.q_norm && false)"),
        (
            "llama/one_token.cpp",
            "multiply(layer.down, gate.data(), B, x, true",
            "multiply(layer.down, gate.data(), B, x, false",
        ),
        ("quantize/product.h", "= x[2 * i + 1]", "= x[2 * i]"),
        ("quantize/product.h", "spread + W.offset", "spread"),
        ("quantize/product.h", "low.data() + n * W.rank", "low.data()"),
        ("quantize/product.h", "if (W.bias) sum +=", "if (W.bias) sum -="),
        ("quantize/product.h", "row_of(W, o, memory.data())", "row_of(W, 0, memory.data())"),
    ],
)
def test_a_fault_in_the_source_is_seen(monkeypatch, tmp_path, file, old, new):
    """Planted in a copy; one of the comparisons above has to fail."""
    for name in ("llama/one_token.cpp", "quantize/product.h", "quantize/kernels/decode.h"):
        text = (cpp.PACKAGE / name).read_text(encoding="utf-8")
        assert name != file or old in text
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
    monkeypatch.undo()
    monkeypatch.setattr(cpp, "PACKAGE", tmp_path)
    planted = cpp.build(tmp_path / "llama/one_token.cpp")
    assert planted is not None
    monkeypatch.setenv("MINILORA_COMPILE", "always")
    monkeypatch.setattr(compiled_token, "state", State(planted, tried=True))
    with pytest.raises(AssertionError):
        for name in ("qlora", "biases everywhere"):
            test_it_equals_the_python_step(name, (20, 7, 13))
        test_each_family_equals_its_general_forward("qwen3")
