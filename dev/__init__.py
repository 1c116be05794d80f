"""The workshop: a whole deployment on one machine, the demo, chaos, fuzzing. It imports everything; nothing imports it."""
