"""The text that the shipped base learns from, and the tasks it is fine-tuned on: all of it made
here, from a seed.

What it replaces: a download. Every word list and every sentence pattern in this folder was written
for minilora.
How it works: `words` holds the lists, `names` makes people and places out of syllables, `world`
plays out small events and keeps track of what is true, `stories` tells them, the other files are
one family of documents each, `tasks` makes the five fine-tuning tasks. Everything draws from one
`random.Random`, so a seed fixes every byte.
What it leaves out: the world. The base knows nothing but this text.
Where numerics differ: nowhere; two runs with the same seed give the same bytes on every platform.
"""
