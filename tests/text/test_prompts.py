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


R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|assistant|>{{ content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
THOUGHT = "<think>\nthe cat\n</think>\n\non the mat"


@pytest.mark.parametrize(
    "answer, learned",
    [
        (THOUGHT, "the cat\n</think>\n\non the mat<|eos|>"),  # behind what the prompt has opened
        ("<think>the cat</think>b", "the cat</think>b<|eos|>"),
        ("on the mat", "on the mat<|eos|>"),  # without thoughts, as it is
    ],
    ids=["thoughts", "in one line", "none"],
)
def test_thoughts_that_the_prompt_opens_are_learned(tokenizer, answer, learned):
    """As DeepSeek-R1's distilled models have them: the prompt ends in <think>, and the template
    leaves thoughts out of the answers that it renders.
    """
    thinking = with_template(tokenizer, R1)
    turns = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": answer}]
    given = "<|bos|><|user|>where?<|assistant|><think>\n"
    assert pieces_of(turns, thinking) == [(given, False), (learned, True)]
    ids, labels = text.encode_example({"messages": turns}, thinking)
    prompt, expected = text.question_and_answer({"messages": turns}, thinking)
    assert ids[: len(prompt)] == prompt and labels[len(prompt) :] == ids[len(prompt) :]
    assert expected == learned.removesuffix("<|eos|>")
    # of more turns the last, since thoughts are left out of the others
    more = [*turns, *turns]
    assert pieces_of(more, thinking)[-1] == (learned, True) and len(pieces_of(more, thinking)) == 2
    row, _ = text.encode_example({"messages": more}, thinking)
    assert row[: len(text.encode_prompt(more[:-1], thinking))] == text.encode_prompt(
        more[:-1], thinking
    )


@pytest.mark.parametrize(
    "rewrites, learned",
    [
        ("m['content'].strip()", "b<|eos|>"),
        ("m['content'] | upper", " B <|eos|>"),
        ("'\\n' ~ m['content'] ~ '\\n'", "\n b \n<|eos|>"),
    ],
)
def test_what_a_template_makes_of_an_answer_is_learned(tokenizer, rewrites, learned):
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ " + rewrites + " }}"
        "{% if m['role'] == 'assistant' %}<|eos|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}]
    other = with_template(tokenizer, template)
    assert pieces_of(turns, other)[-1] == (learned, True)


def test_a_generation_prompt_with_a_space_that_the_template_strips(tokenizer):
    """The answer stands behind the prompt that `generate` asks with."""
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    other = with_template(tokenizer, template)
    assert pieces_of(turns, other) == [("<|user|>a<|assistant|> ", False), ("b", True)]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": None}])
def test_an_answer_of_no_weight_is_given(tokenizer, plain, mark):
    turns = [TURNS[0], {**TURNS[1], **mark}, *TURNS[2:]]
    for each in (tokenizer, plain):
        learned = [piece for piece, keep in pieces_of(turns, each) if keep]
        assert learned == ["d<|eos|>"]
        ids, labels = text.encode_example({"messages": turns}, each)
        whole, all_labels = text.encode_example({"messages": TURNS}, each)
        assert ids == whole
        first = next(i for i, label in enumerate(all_labels) if label != IGNORE)
        assert labels[first : first + 2] == [IGNORE] * 2 and labels[-2:] == all_labels[-2:]
    last = [*TURNS[:3], {**TURNS[3], **mark}]
    ids, labels = text.encode_example({"messages": last}, tokenizer)
    assert labels[-2:] == [IGNORE] * 2 and sum(label != IGNORE for label in labels) == 2
    with pytest.raises(MiniloraError, match="no answer of the conversation is learned"):
        text.encode_example({"messages": [TURNS[0], {**TURNS[1], **mark}]}, tokenizer)


def test_an_empty_answer_is_never_learned(tokenizer):
    empty = [TURNS[0], {"role": "assistant", "content": ""}, *TURNS[2:]]
    with pytest.raises(MiniloraError, match="role `assistant` is empty"):
        text.encode_example({"messages": empty}, tokenizer)
    assert text.encode_prompt(empty[:3], tokenizer)  # it may be asked after
    stripped = with_template(
        tokenizer,
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    with pytest.raises(MiniloraError, match="leaves nothing of an answer but its end"):
        text.encode_example({"prompt": "a", "response": " \n"}, stripped)
