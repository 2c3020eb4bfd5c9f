"""What the lessons use: checks, exercises, sliders, traps, the audit. Nothing else imports it."""
