"""The callers' gRPC: what they ask, what is scheduled of it, and what they hear."""
