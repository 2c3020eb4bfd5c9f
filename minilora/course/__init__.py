"""What the lessons use: checks, exercises, sliders, traps and the audit. Nothing else may import it."""
