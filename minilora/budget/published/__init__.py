"""Peaks that others published, beside what is predicted."""
