"""A conversation as pieces: which of them are learned, and the prompt that `generate` continues."""

import pytest

from minilora import text
from minilora.errors import MiniloraError
from minilora.text import IGNORE, Tokenizer
from minilora.text.prompts import pieces_of

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def with_template(tokenizer, template):
    return Tokenizer(tokenizer.backend, "<|bos|>", "<|eos|>", None, template)


def test_each_answer_of_a_conversation_is_a_learned_piece(tokenizer, plain):
    assert pieces_of(TURNS, tokenizer) == [
        ("<|bos|><|user|>a<|assistant|>", False),
        ("b<|eos|>", True),
        ("<|user|>c<|assistant|>", False),
        ("d<|eos|>", True),
    ]
    assert pieces_of(TURNS, plain) == [
        ("<|bos|>", False),
        ("a\n", False),
        ("b<|eos|>", True),
        ("c\n", False),
        ("d<|eos|>", True),
    ]


def test_where_earlier_answers_are_rewritten_only_the_last_is_learned(tokenizer):
    """As templates do that drop what a model thought in earlier turns."""
    forgetful = with_template(
        tokenizer,
        "{% for m in messages %}<|{{ m['role'] }}|>"
        "{{ '…' if m['role'] == 'assistant' and not loop.last else m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    assert pieces_of(TURNS, forgetful) == [
        ("<|user|>a<|assistant|>…<|user|>c<|assistant|>", False),
        ("d", True),
    ]


@pytest.mark.parametrize(
    "template",
    [
        # the answer does not stand behind the generation prompt
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        # the end of the text is not the end of the last answer
        "{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}{{ messages | length }}",
    ],
)
def test_prompt_and_answer_that_cannot_be_told_apart_are_refused(tokenizer, template):
    with pytest.raises(MiniloraError, match="prompt and answer cannot be told apart"):
        pieces_of(TURNS, with_template(tokenizer, template))


def test_messages_go_before_a_prompt_and_an_answer_may_be_missing():
    assert text.messages_of({"messages": TURNS, "prompt": "p", "response": "r"}) == TURNS
    assert text.messages_of({"prompt": "p"}) == [{"role": "user", "content": "p"}]
    with pytest.raises(MiniloraError, match="only `text` has no question"):
        text.messages_of({"text": "t"})


def test_the_question_of_a_conversation_is_all_but_its_last_answer(tokenizer):
    prompt, answer = text.question_and_answer({"messages": TURNS}, tokenizer)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    assert prompt == [1, 3, a, 4, b, 2, 3, c, 4] and answer == "d"
    assert text.encode_prompt(TURNS[:-1], tokenizer) == prompt


def test_training_and_generation_see_the_same_prompt(tokenizer):
    example = {"prompt": "the cat sat", "response": " on the mat"}
    ids, labels = text.encode_example(example, tokenizer)
    prompt, answer = text.question_and_answer(example, tokenizer)
    assert ids[: len(prompt)] == prompt and answer == " on the mat"
    assert all(label == IGNORE for label in labels[: len(prompt)]) and labels[len(prompt)] != IGNORE
