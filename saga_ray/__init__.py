"""saga-ray: semantic attribute gradients from frozen multimodal LLMs, for visual retrieval, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saga_ray.encoder.export import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saga_ray` and `saga-ray --help` load neither torch nor ray.
    if name == "load_encoder":
        from saga_ray.encoder.export import load_encoder

        return load_encoder
    raise AttributeError(f"module 'saga_ray' has no attribute {name!r}")
