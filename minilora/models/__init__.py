"""Models by name: the catalogue, where each comes from, and the folder in which they are kept. Read
names.py first.
"""
