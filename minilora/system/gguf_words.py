"""What a GGUF, llama.cpp's file, says of its tokens: their types, and which of them end a text.

Reading and writing share this; the rules by which text becomes tokens are in
text/gguf_tokenizer.py.
"""

from __future__ import annotations

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

# llama.cpp ends an answer at tokens of these texts, whatever the file names as its end.
KNOWN_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>")
) | {"<EOT>", "<|end_of_text|>"}

# What llama.cpp takes where the file of a SentencePiece vocabulary names none.
SPM_IDS = {"unknown": 0, "bos": 1, "eos": 2}
