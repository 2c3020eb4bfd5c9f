"""From text to rows of ids: tokenizer, examples, prompts, rows, chats; loads no torch."""

from .ends import answer_ends, tell_end
from .examples import read_examples, read_split
from .prompts import encode_prompt, messages_of, question_and_answer
from .rows import IGNORE, Row, collate, encode_example, encode_rows, pack
from .tokenizer import Tokenizer

__all__ = [
    "IGNORE",
    "Row",
    "Tokenizer",
    "answer_ends",
    "collate",
    "encode_example",
    "encode_prompt",
    "encode_rows",
    "messages_of",
    "pack",
    "question_and_answer",
    "read_examples",
    "read_split",
    "tell_end",
]
