"""A Llama's sizes in one line."""


def sizes(vocab, hidden, ffn, layers, heads, kv_heads=None, context=None) -> dict:
    """These sizes under config.json's names; what is None is left out."""
    named = dict(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
    )
    return {name: size for name, size in named.items() if size is not None}
