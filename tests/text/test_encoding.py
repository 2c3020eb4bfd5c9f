"""Rows of every kind of tokenizer, encoded as one text, beside transformers."""

import random

import pytest
from tokenizers_of_kinds import KINDS, WORDS, folder_of

from minilora.text import IGNORE, Tokenizer, encode_example, encode_prompt
from minilora.text.encoding import encode_pieces

# as the models have them: Llama 2, TinyLlama, Vicuna, one that ends its prompt in a space, and one
# that ends it in a line's end
TEMPLATES = {
    "llama 2": "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "tinyllama": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + m['content'] + eos_token }}\n{% else %}\n"
    "{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}",
    "vicuna": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "USER: {{ m['content'] }}{% else %} ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}",
    "ends in a space": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "USER: {{ m['content'] }}{% else %} ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT: {% endif %}",
    "ends in a line": "{{ bos_token }}{% for m in messages %}### {{ m['role'][0] }}:\n"
    "{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}### a:\n{% endif %}",
}


def conversation(draw: random.Random) -> list[dict]:
    some = [*WORDS, "\n", " ", "é", "12", ",", "The"]
    pick = lambda: "".join(draw.choice(some) + draw.choice(["", " "]) for _ in range(4))  # noqa: E731
    return [
        {"role": ("user", "assistant")[i % 2], "content": pick() + draw.choice(WORDS)}
        for i in range(draw.choice([2, 4, 6]))
    ]


@pytest.mark.parametrize("named", [None, *TEMPLATES])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parity
def test_a_row_is_what_transformers_makes_of_the_whole_text(tmp_path, kind, named):
    """And begins with the ids that `generate` is given, for each of its answers. Where these are
    no beginning of transformers' row, a token straddles the border, and the row is cut there.
    """
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, kind, chat_template=TEMPLATES.get(named))
    ours, theirs = (
        Tokenizer.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    draw = random.Random(f"{kind} {named}")
    for _ in range(8):
        turns = conversation(draw)
        ids, labels = encode_example({"messages": turns}, ours)
        whole = theirs(ours.chat(turns), add_special_tokens=False).input_ids
        prompts = [encode_prompt(turns[:i], ours) for i in range(1, len(turns), 2)]
        assert prompts[0] == theirs(ours.chat(turns[:1], True), add_special_tokens=False).input_ids
        assert (ids == whole) == all(whole[: len(each)] == each for each in prompts)
        for prompt in prompts:
            assert ids[: len(prompt)] == prompt
            assert labels[len(prompt) - 1] == IGNORE != labels[len(prompt)]
        assert [i for i, label in enumerate(labels) if label == ours.eos_id] == [
            i for i, id in enumerate(ids) if id == ours.eos_id and labels[i] != IGNORE
        ]
        assert sum(label == ours.eos_id for label in labels) == len(prompts)


@pytest.mark.parametrize("kind", ["prepend", "always", "first"])
def test_an_answer_brings_no_space_of_the_tokenizers_own(tmp_path, kind):
    """Encoded apart it would: one token too many in each answer."""
    tokenizer = Tokenizer.from_pretrained(folder_of(tmp_path, kind))
    example = {"prompt": "why", "response": "the cat"}
    ids, labels = encode_example(example, tokenizer)
    learned = [label for label in labels if label != IGNORE]
    assert tokenizer.encode("the cat")[0] not in learned
    assert tokenizer.backend.decode(learned, skip_special_tokens=False) == "the cat</s>"
    assert ids == tokenizer.encode("<s>why\nthe cat</s>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_across_the_border_is_cut_there(tmp_path, kind):
    """The prompt ends in the space that the answer's first word would take along."""
    tokenizer = Tokenizer.from_pretrained(folder_of(tmp_path, kind))
    ids, places = encode_pieces([("the ", False), ("cat sits", True)], tokenizer)
    prompt = tokenizer.encode("the ")
    assert ids[: len(prompt)] == prompt and places == [0, len(prompt), len(ids)]
    assert tokenizer.decode(ids) in ("the cat sits", "thecat sits")  # unigram strips the space
    if kind in ("prepend", "always", "first"):
        assert ids[len(prompt)] != tokenizer.encode("cat")[0]  # as behind a text: without a space


def test_an_unknown_letter_before_the_border_is_no_special_token(tmp_path):
    """Its id is that of <unk>, at which no text is cut."""
    tokenizer = Tokenizer.from_pretrained(folder_of(tmp_path, "unigram"))
    example = {"prompt": "where, dog ", "response": "who"}
    ids, labels = encode_example(example, tokenizer)
    prompt = encode_prompt("where, dog ", tokenizer)
    assert labels[len(prompt) - 1] == IGNORE != labels[len(prompt)]
    unknown = tokenizer.backend.token_to_id("<unk>")
    assert unknown in ids[: len(prompt) + 2] and ids[: len(prompt)] == prompt
