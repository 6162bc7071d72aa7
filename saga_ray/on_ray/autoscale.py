"""How many replicas of the scorer so many tokens are worth. Serve's controller runs this, so it imports nothing."""

from __future__ import annotations

from typing import Any


class TokenPolicy:
    """A replica for every `tokens_per_replica` tokens that wait or are being scored; Serve adds bounds and delays.

    Requests that have not reached a replica yet are known by number only, and taken to be like those that have.
    """

    def __init__(self, tokens_per_replica: float) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, ctx: Any) -> tuple[float, dict[str, Any]]:
        """Replicas wanted, from Serve's `AutoscalingContext`."""
        there = sum((ctx.aggregated_metrics or {}).get("tokens", {}).values())
        arrived = ctx.total_num_requests - (ctx.total_queued_requests or 0.0)
        if there <= 0 or arrived <= 0:
            # Nothing is known of the tokens: one replica each, as many as there are requests.
            return float(ctx.total_num_requests), {}
        return there * ctx.total_num_requests / arrived / self._tokens_per_replica, {}
