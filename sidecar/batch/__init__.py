"""What a data team does with a job from outside: send it, order it about, read what came of it."""
