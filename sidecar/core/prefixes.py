"""What one engine's KV cache holds of prefixes that several requests share, as far as their first dispatches told.

A request whose prefix is in the cache computes the rest only. Pacing has to know: it would hand out chunks of a prompt
that the engine need not compute. What is expected is what the last request with that prefix found, so it grows as the
prefix is computed chunk by chunk, and is forgotten with the first request that does not find it any more.
"""

from __future__ import annotations

PREFIXES_MAX = 1024


class Prefixes:
    """Cached tokens by prefix, the least recently told forgotten first."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def tokens(self, prefix_key: str) -> int:
        """How many leading tokens of such a prompt should be in the cache; 0 without a key."""
        return self._tokens.get(prefix_key, 0)

    def clear(self) -> None:
        """Nothing is known any more: the engine may be another one."""
        self._tokens.clear()

    def learn(self, prefix_key: str, reused_tokens: int | None) -> None:
        """The first dispatch of a request with this prefix found so many tokens; None = the engine did not say."""
        if not prefix_key or reused_tokens is None:
            return
        self._tokens.pop(prefix_key, None)
        self._tokens[prefix_key] = reused_tokens
        if len(self._tokens) > PREFIXES_MAX:
            del self._tokens[next(iter(self._tokens))]
