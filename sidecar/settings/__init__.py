"""The settings: what an operator may state, and how the file is read."""
