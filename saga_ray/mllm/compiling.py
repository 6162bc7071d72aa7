"""torch.compile as everything of an MLLM uses it: shapes of any size, and no function that silently goes uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled_if(wanted: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled if that is wanted."""
    if not wanted:
        return function
    # Beyond the limit a function would silently go uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(function, dynamic=True)
