"""A conversation as pieces of text, each marked *learned* or *given*; and the prompt of a question.

What it replaces: transformers' `apply_chat_template(..., return_assistant_tokens_mask=True)`, which
asks for a mark in the template; and TRL's response templates.
How it works: the template is run twice for each answer, up to the generation prompt and through the
answer. What the second text has more is the answer, so `generate` and training see the very same
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MiniloraError
from .tokenizer import Piece, Tokenizer, plain_pieces


def _template_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """Split the template's text at each answer; where it rewrites earlier turns, only the last
    answer is learned.
    """
    whole = tokenizer.chat(messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for chosen in (answers, answers[-1:]):
        pieces: list[Piece] = []
        done = 0
        for i in chosen:
            given = tokenizer.chat(messages[:i], add_generation_prompt=True)
            through = tokenizer.chat(messages[: i + 1])
            if not (whole.startswith(through) and through.startswith(given) and len(given) >= done):
                break
            pieces += [(given[done:], False), (through[len(given) :], True)]
            done = len(through)
        else:
            return pieces
    raise MiniloraError(
        "the chat template does not put the answer after the generation prompt, so prompt and "
        "answer cannot be told apart; "
        "give data with `text`, or another tokenizer"
    )


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
    plain = tokenizer.template is None
    return (plain_pieces if plain else _template_pieces)(messages, tokenizer)


def encode_prompt(prompt: str | Sequence[dict], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the model is to answer: a question, or a conversation that ends with the
    user's turn.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tokenizer.encode(tokenizer.chat(messages, add_generation_prompt=True))


def question_and_answer(example: dict, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The prompt's ids and the text that should follow, for scoring."""
    messages = messages_of(example)
    return encode_prompt(messages[:-1], tokenizer), messages[-1]["content"]
