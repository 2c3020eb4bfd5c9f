"""Scoring: an answer belongs to its question, not to its batch."""

import torch

from minilora.llama import Llama
from minilora.text import Tokenizer, encode_prompt
from minilora.train.scoring import exact_match


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
