"""The commands, one file each: `add_arguments(parser)` and `run(args)`. See cli.py.

What it replaces: one long script. How it works: cli.py imports the one that is asked for.
What it leaves out: `pretrain`, which lives in minilora/pretrain.py. Where numerics differ: nowhere.
"""
