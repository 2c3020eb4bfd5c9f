"""Scripts that make the project's own files: environment.yml, the notebooks' common parts and
outputs, the README's tables.
"""
