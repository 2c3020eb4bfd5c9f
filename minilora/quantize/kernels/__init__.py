"""Encode and decode in blocks, once for each kind of machine, under the same names."""
