"""Adapter folders that came to harm: one line, or what PEFT answers with the same folder; never a
traceback, never a wait.

`make test` tries a hundred, the slow test 1,600.
"""

import json
import random
import time
import warnings

import pytest
import torch
from adapter_damage import damaged_settings, damaged_tensors
from little_llamas import llama, our_llama, ours, theirs, write_adapter
from safetensors.torch import load_file

from minilora.errors import MiniloraError
from minilora.lora.keys import spell
from minilora.lora.targets import original_modules

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

KINDS = {
    "plain": (False, dict()),
    "all": (False, dict(target_modules="all-linear", use_rslora=True)),
    "dora": (False, dict(target_modules=["q_proj", "up_proj"], use_dora=True)),
    "ends": (False, dict(target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "full": (
        False,
        dict(
            modules_to_save=["lm_head", "norm"],
            rank_pattern={"layers.1.self_attn.q_proj": 2},
            alpha_pattern={"q_proj": 3},
        ),
    ),
    "regex": (False, dict(target_modules=r".*layers\.\d\.mlp\.(up|down)_proj")),
    "head": (True, dict(target_modules=["q_proj", "lm_head"])),
    "as one": (
        True,
        dict(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ),
}
SECONDS = 5
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One folder of each kind, as PEFT wrote it."""
    top = tmp_path_factory.mktemp("sound")
    for kind, (tied, settings) in KINDS.items():
        write_adapter(llama(tied=tied), top / kind, **settings)
    ours(top / "plain")  # what is imported at the first time is imported now
    return top


def try_one(sound, folder, what, seed):
    """Damage one file of one folder by `seed`; returns "refused", "equal" or "ours alone"."""
    rng = random.Random(f"{what} {seed}")
    kind = rng.choice(sorted(KINDS))
    tied = KINDS[kind][0]
    files = {name: (sound / kind / name).read_bytes() for name in ("adapter_config.json", WEIGHTS)}
    if what == "settings":
        settings = json.loads(files["adapter_config.json"])
        files["adapter_config.json"] = damaged_settings(settings, rng)
    else:
        files[WEIGHTS] = damaged_tensors(files[WEIGHTS], rng, sound / kind)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model, start = our_llama(tied=tied), time.monotonic()
    try:
        found = ours(folder, model)
    except MiniloraError as error:
        assert "\n" not in str(error) and len(str(error)) < 800, str(error)
        assert not [1 for name, _ in model.named_parameters() if "lora" in name], "half loaded"
        return "refused"
    finally:
        assert time.monotonic() - start < SECONDS, f"{what} {seed} took too long"
    try:
        keys, paths = load_file(folder / WEIGHTS), original_modules(our_llama(tied=tied))
        if any(spell(key, paths) != key for key in keys):
            return "ours alone"  # PEFT looks for none of these names
        wanted = theirs(folder, tied=tied)
    except Exception:  # PEFT has no error of its own for it
        return "ours alone"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5, msg=f"{what} {seed} ({kind})")
    return "equal"


def try_many(sound, folder, what, seeds):
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [try_one(sound, folder, what, seed) for seed in seeds]


@pytest.mark.parametrize("what", ["settings", "tensors"])
def test_damage_is_said_in_one_line_or_does_not_matter(sound, tmp_path, what):
    found = try_many(sound, tmp_path / "x", what, range(50))
    assert found.count("refused") > 15 and found.count("equal") > 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["settings", "tensors"])
def test_much_damage_is_said_in_one_line_or_does_not_matter(sound, tmp_path, what):
    found = try_many(sound, tmp_path / "x", what, range(1000, 1800))
    assert found.count("refused") > 200 and found.count("equal") > 40
    assert found.count("ours alone") < 40
