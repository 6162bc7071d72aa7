"""The demo world: birds drawn by our own code, with known attributes."""

from saga_ray.data.demo.world import demo_dataset

__all__ = ["demo_dataset"]
