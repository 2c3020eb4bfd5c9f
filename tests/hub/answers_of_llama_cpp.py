"""What llama.cpp makes of a GGUF file: read a request from standard input, write its answers.

Run by the tests in a Python that has `llama_cpp`, which need not be theirs. The request is JSON:
{"file": …, "texts": [text, …], "prompts": [[id, …], …], "chats": [messages, …], "max_new": N,
"exact_cache": keys and values in fp32?}.
"""

import json
import sys

from llama_cpp import Llama, llama_cpp, llama_model_get_vocab, llama_vocab_is_eog


def plainly() -> None:
    """Weights as they are in the file. llama.cpp 0.3.36 would repack those of Q8_0 for AMX, and
    falls over its own `llama-quantize`'s file on a machine where AMX is announced and not there.
    """
    default = llama_cpp.llama_model_default_params

    def parameters():
        made = default()
        made.use_extra_bufts = False
        return made

    llama_cpp.llama_model_default_params = parameters


def main() -> None:
    asked = json.load(sys.stdin)
    plainly()
    # keys and values are kept in f16 where nothing else is said
    cache = dict(type_k=0, type_v=0) if asked.get("exact_cache") else {}
    model = Llama(asked["file"], n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, **cache)
    vocab = llama_model_get_vocab(model.model)
    answers = []
    for prompt in asked.get("prompts", []):
        model.reset()
        answer: list[int] = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if llama_vocab_is_eog(vocab, token) or len(answer) == asked["max_new"]:
                break
            answer.append(token)
        answers.append(answer)
    chats = [
        model.create_chat_completion(
            messages, temperature=0.0, repeat_penalty=1.0, max_tokens=asked["max_new"]
        )["choices"][0]["message"]["content"]
        for messages in asked.get("chats", [])
    ]
    made = {
        "ids": [
            model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
            for text in asked.get("texts", [])
        ],
        "begun": model.tokenize(b"a", add_bos=True, special=True),
        "answers": answers,
        "chats": chats,
    }
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
