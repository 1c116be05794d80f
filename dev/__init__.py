"""The workshop: a whole deployment on one machine, demo, chaos and fuzzing. Nothing of the product imports it."""
