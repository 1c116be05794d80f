"""Pure: the scheduler and all it decides with. No clock, no sockets, no tasks, no randomness, no logging."""
