"""The driver in simulated time, and what is measured with it."""
