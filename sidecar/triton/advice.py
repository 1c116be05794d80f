"""What an operator may do about an engine that is down, from the words of gRPC and Triton."""

from __future__ import annotations

_ADVICE = (
    ("Socket closed", "what listens there speaks no gRPC: engines[].target is Triton's gRPC port, usually 8001"),
    ("Trying to connect an http1.x server", "what listens there speaks no gRPC, which is usually on port 8001"),
    ("Connection refused", "nothing listens there: is Triton up, and is engines[].target its gRPC port, usually 8001?"),
    ("DNS resolution failed", "the name in engines[].target cannot be resolved"),
    ("Domain name not found", "the name in engines[].target cannot be resolved"),
    ("unknown model", "engines[].model names a model that this Triton does not have"),
    ("restricted", "engines[].metadata_files can hold the key of Triton's restricted protocols"),
)


def with_advice(reason: str) -> str:
    """`reason`, and what to do about it where that is known."""
    advice = next((advice for words, advice in _ADVICE if words in reason), "")
    return f"{reason} ({advice})" if advice else reason
