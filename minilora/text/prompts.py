"""A conversation as pieces of text, each marked *learned* or *given*; and the prompt of a question.

What it replaces: transformers' `apply_chat_template(..., return_assistant_tokens_mask=True)`, which
asks for a mark in the template; and TRL's response templates.
How it works: the template is run twice for each answer, up to the generation prompt and through the
answer. What the second text has more is the answer, so `generate` and training see the very same
prompt. An answer whose message has `weight: 0` or `train: false` is given, not learned.
Where a template rewrites the answer: what it writes is learned, such as a text without outer white
space. DeepSeek-R1's distilled models open the answer's thoughts in the prompt (`<think>`) and leave
thoughts out of answers that they render; there the answer is learned as it is written, from behind
what the prompt has opened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import MiniloraError
from .encoding import encode_pieces
from .tokenizer import Piece, Tokenizer, plain_pieces

MARK = "Qz7answer7zQ"  # stands for an answer, to see what a template puts around it


def _template_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """Split the template's text at each answer; where it rewrites earlier turns, only the last
    answer is learned.
    """
    whole = tokenizer.chat(messages)
    pieces: list[Piece] = []
    done = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        given = tokenizer.chat(messages[:i], add_generation_prompt=True)
        through = tokenizer.chat(messages[: i + 1])
        if not (whole.startswith(through) and through.startswith(given) and len(given) >= done):
            return _last_answer(messages, whole, tokenizer)
        pieces += [(given[done:], False), (through[len(given) :], is_learned(message))]
        done = len(through)
    return pieces


def _last_answer(messages: Sequence[dict], whole: str, tokenizer: Tokenizer) -> list[Piece]:
    """All but the last answer is given. The generation prompt may have more than the answer's own
    head, such as `<think>`.
    """
    *before, last = messages
    given = tokenizer.chat(before, add_generation_prompt=True)
    if whole.startswith(given):
        return [(given, False), (whole[len(given) :], is_learned(last))]
    base = tokenizer.chat(before)
    head = os.path.commonprefix([given, whole])
    if not (given.startswith(base) and len(head) > len(base)):
        raise MiniloraError(
            "the chat template does not put the answer after the generation prompt, so prompt and "
            "answer cannot be told apart; "
            "give data with `text`, or another tokenizer"
        )
    opened, rendered = given[len(head) :], whole[len(head) :]
    marked = tokenizer.chat([*before, {**last, "content": MARK}])[len(head) :]
    learned = rendered
    if marked.count(MARK) == 1:
        front, end = marked.split(MARK)
        learned = _as_written(last["content"], opened, front, rendered.removesuffix(end)) + end
    return [(given, False), (learned, is_learned(last))]


def _as_written(answer: str, opened: str, front: str, rendered: str) -> str:
    """The answer behind `opened`, which it may repeat, and the template's own `front`; as rendered
    where that differs by outer white space alone.
    """
    if opened.strip() and answer.strip().startswith(opened.strip()):
        rest = answer.strip()[len(opened.strip()) :]
        return rest.removeprefix(opened[len(opened.rstrip()) :])
    return rendered if rendered.strip() == answer.strip() else front + answer


def is_learned(message: dict) -> bool:
    """Whether an answer is to be learned: OpenAI's `weight` and axolotl's `train` say so."""
    return message.get("weight") in (None, 1) and message.get("train") in (None, 1)


def messages_of(example: dict) -> list[dict]:
    """The example as a conversation; raises MiniloraError for a bare `text`, which has no
    question.
    """
    if "messages" in example:
        return example["messages"]
    if "prompt" in example:
        answer = (
            [{"role": "assistant", "content": example["response"]}] if "response" in example else []
        )
        return [{"role": "user", "content": example["prompt"]}, *answer]
    raise MiniloraError(
        "an example with only `text` has no question to answer; give `prompt` and `response`, "
        "or `messages`"
    )


def pieces_of(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """The conversation by the tokenizer's chat template, or in the plain format without one."""
    for each in messages:
        if each["role"] == "assistant" and is_learned(each) and not each["content"]:
            raise MiniloraError(
                "a message of the role `assistant` is empty, so its end alone would be learned; "
                "leave it out, or give it `weight: 0`"
            )
    if tokenizer.template is not None:
        return _template_pieces(messages, tokenizer)
    pieces = plain_pieces(messages, tokenizer)
    learned = [False, *(each["role"] == "assistant" and is_learned(each) for each in messages)]
    return [(text, keep) for (text, _), keep in zip(pieces, learned)]


def encode_prompt(prompt: str | Sequence[dict], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the model is to answer: a question, or a conversation that ends with the
    user's turn. They begin the row that is trained.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.chat(messages, add_generation_prompt=True)
    # earlier answers are cut from their questions where the trained row is
    last = max((i for i, each in enumerate(messages) if each["role"] == "assistant"), default=-1)
    pieces: list[Piece] = []
    if last >= 0:
        try:
            pieces = pieces_of(messages[: last + 1], tokenizer)
        except MiniloraError:  # nothing can be learned from these turns; they can be asked after
            pieces = []
    done = "".join(piece for piece, _ in pieces)
    if not text.startswith(done):
        pieces, done = [], ""
    ids, _ = encode_pieces([*pieces, (text[len(done) :], False)], tokenizer)
    return tokenizer.one_bos(ids)


def question_and_answer(example: dict, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The prompt's ids and the text that should follow, as it is learned; for scoring."""
    messages = messages_of(example)
    answer = messages[-1]["content"]
    if tokenizer.template is not None:
        try:
            learned = pieces_of(messages, tokenizer)[-1][0]
        except MiniloraError:
            learned = answer
        if answer.strip() not in learned:
            answer = tokenizer.decode(tokenizer.encode(learned))
    return encode_prompt(messages[:-1], tokenizer), answer
