"""Scoring: an answer belongs to its question, not to its batch."""

import types

import pytest
import torch

from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.text import Tokenizer, encode_prompt
from minilora.train.scoring import exact_match, is_hit


def test_an_answer_does_not_depend_on_who_shares_the_batch(tiny_folder):
    model, tokenizer = Llama.from_pretrained(tiny_folder), Tokenizer.from_pretrained(tiny_folder)
    prompts = [
        "who",
        "the cat sat on the mat",
        "the dog",
        "who was there with the bird",
        "?",
        "on the mat",
    ]
    examples = [{"prompt": prompt, "response": "the cat"} for prompt in prompts]
    answers = [exact_match(model, tokenizer, examples, batch_size)[2] for batch_size in (1, 3, 6)]
    assert answers[0] == answers[1] == answers[2] and len(set(answers[0])) > 1
    ids = encode_prompt(prompts[0], tokenizer)
    alone = model.generate(
        torch.tensor([ids]), len(tokenizer.encode("the cat")) + 4, stop=tokenizer.eos_id
    )[0, len(ids) :]
    assert tokenizer.decode(alone) == answers[0][0]


class Speaker(torch.nn.Module):
    """Says to each prompt what the table says, however the batch is made."""

    def __init__(self, tokenizer, table):
        super().__init__()
        self.tokenizer, self.table = tokenizer, table
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.widths = []

    def generate(self, ids, new, attention_mask, stop):
        self.widths.append(ids.shape[0])
        assert not self.training, "scored in training mode"
        rows = []
        for row, mask in zip(ids.tolist(), attention_mask.tolist()):
            own = tuple(token for token, seen in zip(row, mask) if seen)
            said = [*self.tokenizer.encode(self.table[own]), stop[0]][:new]
            rows.append(row + said + [stop[0]] * (new - len(said)))
        return torch.tensor(rows)


SAID = {
    "right": ("the cat", "the cat"),
    "white space": (" the cat\n", "the cat"),
    "begins as wanted": ("the cat sat", "the cat"),
    "the wanted's beginning": ("the", "the cat"),
    "ends as wanted": ("on the cat", "the cat"),
    "another": ("the dog", "the cat"),
    "another case": ("The cat", "the cat"),
    "silence": ("", "the cat"),
}


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_only_the_whole_answer_is_a_hit(tiny_folder, batch):
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    examples = [{"prompt": name, "response": wanted} for name, (_, wanted) in SAID.items()]
    table = {tuple(encode_prompt(name, tokenizer)): said for name, (said, _) in SAID.items()}
    speaker = Speaker(tokenizer, table).train()
    hits, number, answers = exact_match(speaker, tokenizer, examples, batch)
    assert [is_hit(a, w) for a, (_, w) in zip(answers, SAID.values())] == [True] * 2 + [False] * 6
    assert (hits, number) == (2, 8) and max(speaker.widths) == min(batch, 8) and speaker.training
    assert [answer.strip() for answer in answers] == [said.strip() for said, _ in SAID.values()]


def test_the_longest_wanted_answer_of_a_batch_has_room(tiny_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    wanted = {"short": "a", "long": "the dog and the bird and the cat sat on the mat"}
    examples = [{"prompt": name, "response": answer} for name, answer in wanted.items()]
    table = {tuple(encode_prompt(name, tokenizer)): answer for name, answer in wanted.items()}
    assert exact_match(Speaker(tokenizer, table), tokenizer, examples)[0] == 2


@pytest.mark.parametrize("where", ["config", "generation_config"])
def test_an_answer_ends_at_any_end_of_the_model(tiny_folder, where):
    """A chat's model says its end of turn, and the tokenizer calls another token EOS."""
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    turn = tokenizer.encode("<|user|>")[0]
    examples = [{"prompt": "who", "response": "the cat"}, {"prompt": "a", "response": "b"}]
    table = {
        tuple(encode_prompt(e["prompt"], tokenizer)): e["response"] + "<|user|>the"
        for e in examples
    }
    speaker = Speaker(tokenizer, table)
    assert exact_match(speaker, tokenizer, examples)[0] == 0
    setattr(speaker, where, types.SimpleNamespace(eos_token_id=[319, turn], vocab_size=320))
    assert exact_match(speaker, tokenizer, examples) == (2, 2, ["the cat", "b"])


def test_the_model_is_told_every_end(tiny_folder, monkeypatch):
    """Else a row that has ended goes on, and others wait for it."""
    model, tokenizer = Llama.from_pretrained(tiny_folder), Tokenizer.from_pretrained(tiny_folder)
    model.config.eos_token_id = [7, 9]
    stops, generate = [], model.generate

    def told(*args, **settings):
        stops.append(settings["stop"])
        return generate(*args, **settings)

    monkeypatch.setattr(model, "generate", told)
    exact_match(model, tokenizer, [{"prompt": "who", "response": "the cat"}])
    assert stops == [[2, 7, 9]]


def test_padding_that_the_model_does_not_have_is_named(tiny_folder):
    model, tokenizer = Llama.from_pretrained(tiny_folder), Tokenizer.from_pretrained(tiny_folder)
    other = Tokenizer(tokenizer.backend, "<|bos|>", "<|eos|>", "<|user|>")
    model.config.vocab_size = other.pad_id
    with pytest.raises(MiniloraError, match="pad_token '<|user|>' has the id 3, .* knows 0 to 2"):
        exact_match(model, other, [{"prompt": "who", "response": "the cat"}])
