"""A thousand damaged config.json of the families, spelled as transformers 4 and as 5 spells them:
each is refused in one line, or means what transformers takes it to mean.
"""

import importlib.util
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from family_twins import SMALL, YARN, their_model

from minilora.errors import MiniloraError
from minilora.llama import Llama

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KINDS = {
    "llama": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": dict(sliding_window=6, rope_scaling=YARN | {"attention_factor": 1.2}),
    "qwen2": dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3": dict(head_dim=12, rope_scaling={"type": "linear", "factor": 2.0}),
}
COUNT = 250  # of each family
IDS = torch.arange(3, 24)[None]


@pytest.fixture(scope="module")
def mutate():
    path = Path(__file__).parents[1] / "fuzz" / "mutate.py"
    spec = importlib.util.spec_from_file_location("mutate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(folder):
    """transformers' logits, or None where it refuses, or draws a weight at random."""
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, local_files_only=True
        )
        if told["missing_keys"] or told["mismatched_keys"]:
            return None
        with torch.no_grad():
            return model.eval()(IDS).logits
    except Exception:
        return None


@pytest.mark.parametrize("family", KINDS)
def test_a_damaged_config_is_refused_or_means_the_same(tmp_path, mutate, family):
    sound = tmp_path / "sound"
    raw = SMALL | KINDS[family] | {"model_type": family}
    their_model(json.loads(json.dumps(raw))).save_pretrained(sound)
    spelled = json.dumps(raw).encode(), (sound / "config.json").read_bytes()
    loads = 0
    for case in range(COUNT):
        folder = shutil.copytree(sound, tmp_path / "case", dirs_exist_ok=True)
        dice = random.Random(f"{family} {case}")
        (folder / "config.json").write_bytes(mutate.json_damaged(dice, spelled[case % 2]))
        start = time.process_time()
        try:
            model = Llama.from_pretrained(folder).eval()
            with torch.no_grad():
                found = model(IDS)
        except MiniloraError as error:
            assert "\n" not in str(error), case
            continue
        finally:
            assert time.process_time() - start < 5, case
        wanted = theirs(folder)
        if wanted is not None:
            loads += 1
            assert (wanted - found).abs().max() <= 1e-4, case
    assert COUNT // 8 < loads < COUNT // 2  # the damage is neither none nor too much
