"""A whole deployment on one machine: broker, Triton, sidecar, load and checker as child processes."""
