"""Pretraining: the same command, much smaller, ends in a folder that loads; its parts do what they
say.
"""

import json
import shutil
import subprocess
import sys
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.recipes import pretrain
from minilora.system.files import data_folder


def test_attention_by_products_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(
        pretrain.attention_by_products(q, k, v), expected, atol=1e-6, rtol=1e-5
    )


def test_rows_hold_whole_documents_and_lose_none():
    documents = [([1] + [10 + i] * (i % 7), [False] * (1 + i % 7)) for i in range(200)]
    rows = list(islice(pretrain.pack_rows(iter(documents), 16, pool=8), 60))
    assert all(len(ids) == len(answer) == 16 for ids, answer in rows)
    assert sum(ids.count(1) for ids, _ in rows) == 200
    for i in range(200):
        run = [1] + [10 + i] * (i % 7)
        assert any(run == ids[j : j + len(run)] for ids, _ in rows for j in range(16))


def test_the_rate_rises_stays_and_falls():
    stage = pretrain.Stage("first", steps=1000, warmup=10, hold=500, zero=1000)
    rates = [stage.rate_at(s, 1.0) for s in range(1000)]
    assert rates[0] == 0.1 and rates[9] == rates[499] == 1.0
    assert rates[500:] == sorted(rates[500:], reverse=True) and rates[-1] == pytest.approx(0.002)


def test_the_loss_leaves_padding_out_and_weighs_answers():
    from minilora.llama import Llama

    torch.manual_seed(1)
    model = Llama(
        pretrain.make_config(
            pretrain.Plan(hidden=64, layers=1, heads=1, groups=1, mlp=64, vocabulary=50)
        )
    )
    ids = torch.tensor([[1, 5, 6, 7, 2, 0, 0]])
    answer = torch.tensor([[False, False, False, True, True, False, False]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :4]).float()
    parts = F.cross_entropy(logits[0], ids[0, 1:5], reduction="none")
    expected = (parts[0] + parts[1] + 3 * parts[2] + 3 * parts[3]) / 8
    assert pretrain.weighted_loss(model, ids, answer, 3.0).item() == pytest.approx(
        expected.item(), abs=1e-3
    )


def test_bad_numbers_get_one_line(tmp_path, capsys):
    assert main(["pretrain", "--out", str(tmp_path / "x"), "--share", "0"]) == 2
    assert "--share is 0" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_command_ends_in_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "Plan", lambda **k: small_plan(**k))
    assert (
        main(
            ["pretrain", "--out", str(tmp_path), "--share", "0.001", "--rows", "2", "--no-compile"]
        )
        == 0
    )
    from minilora.llama import Llama
    from minilora.text import Tokenizer

    model, tokenizer = Llama.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode("Mira found the key.", bos=True)])
    assert torch.isfinite(model(ids)).all()
    facts = json.loads((tmp_path / "training.json").read_text())
    assert (
        facts["tokens"] == (2 + 1) * 2 * 319
        and f"{facts['tokens']:,}" in (tmp_path / "README.md").read_text()
    )
    assert (tmp_path / "training.png").stat().st_size > 5000


original = pretrain.Plan


def small_plan(**settings):
    return original(
        **{
            "hidden": 64,
            "layers": 1,
            "heads": 1,
            "groups": 1,
            "mlp": 64,
            "vocabulary": 600,
            **settings,
        }
    )


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretrain,
        "weighted_loss",
        lambda model, *rest: next(model.parameters()).sum() * float("nan"),
    )
    tokenizer = pretrain.corpus().tokens.train_tokenizer(600, count=50)
    with pytest.raises(MiniloraError, match="lower --rate"):
        pretrain.learn(
            small_plan(stages=(pretrain.Stage("first", 2, 1, 1, 2),), rows=1),
            tokenizer,
            tmp_path,
            every=2,
            compiled=False,
        )


@pytest.mark.parametrize("loss, code", [(8.0, 0), (8.1, 0), (8.2, 2), (float("nan"), 2)])
def test_a_base_worse_than_guessing_is_no_success(tmp_path, monkeypatch, capsys, loss, code):
    """ln 3072 = 8.03."""
    monkeypatch.setattr(pretrain, "run", lambda *_, **__: {"lookup": 0.0, "loss": loss})
    assert main(["pretrain", "--out", str(tmp_path), "--rate", "9"]) == code
    told = capsys.readouterr().err
    assert ("guessing gives 8.03; begin anew with a lower --rate (now 9)" in told) == (code == 2)


@pytest.mark.parametrize(
    "right, expected",
    [
        ([1, 1, 1], True),
        ([0, 1, 1], False),
        ([1, 0, 1], False),
        ([1, 1, 0], False),
        ([0, 0, 0], False),
    ],
)
def test_an_answer_counts_only_if_all_its_tokens_are_right(right, expected):
    document = [("user", "text\nWho?"), ("assistant", "ab"), ("user", "What?"), ("assistant", "c")]
    # bos user . assistant a b eos user . assistant c eos
    ids = [1, 3, 9, 4, 5, 6, 2, 3, 9, 4, 7, 2]
    answer = [token in (5, 6, 2, 7) for token in ids]
    # one for each id but the first
    guessed = [False, True, False, *map(bool, right), False, False, False, True, True]
    assert list(pretrain.answers(document, ids, answer, guessed)) == [
        ("Who?", expected),
        ("What?", True),
    ]


def test_an_old_torch_is_named_before_anything_is_made(tmp_path, monkeypatch, capsys):
    """torch 2.5, which the package allows, has no Muon: one line, and the version to install."""
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(MiniloraError, match=r"pip install 'torch>=2\.9'") as told:
        pretrain.optimizers(torch.nn.Linear(2, 2), small_plan())
    assert "\n" not in str(told.value) and torch.__version__ in str(told.value)
    monkeypatch.setattr(pretrain, "corpus", lambda: pytest.fail("work was done in vain"))
    assert main(["pretrain", "--out", str(tmp_path / "base")]) == 2
    printed = capsys.readouterr()
    assert "torch>=2.9" in printed.out + printed.err and not list(tmp_path.iterdir())


WITHOUT_MUON = """
import sys, torch
del torch.optim.Muon
from minilora.cli.main import main
folder, data, out = sys.argv[1:]
sys.exit(main(["finetune", "--model", folder, "--data", data, "--out", out, "--steps", "1",
               "--batch", "1", "--rank", "1", "--method", "qlora"]))
"""


@pytest.mark.slow
def test_without_muon_all_else_runs(tiny_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "the cat", "response": "sat"}\n' * 4)
    command = [sys.executable, "-c", WITHOUT_MUON, str(tiny_folder), str(data), str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "a/adapter_model.safetensors").is_file()


def test_the_shipped_base_is_what_a_plan_makes_and_its_card_what_its_files_say(tmp_path):
    """The configuration field by field, the card byte by byte."""
    base = data_folder() / "base"
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    made = pretrain.make_config(pretrain.Plan()).to_hf()
    assert {name: config[name] for name in made if name in config} == {
        name: value for name, value in made.items() if name in config
    }
    for name in ("model.safetensors", "training.json"):
        shutil.copy(base / name, tmp_path)
    pretrain.describe(tmp_path, pretrain.POSITIONS)
    assert (tmp_path / "README.md").read_bytes() == (base / "README.md").read_bytes()
