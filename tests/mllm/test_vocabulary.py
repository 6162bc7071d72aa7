"""Vocabularies in the package and of one's own, and the prompts that they give."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from saga_ray.mllm.prompt import load_prompt

BUNDLED = Path(str(files("saga_ray").joinpath("mllm", "demo", "weights")))
DEMO_PROMPTS = {
    "structured": "fa07c1cf8225b999f8238b68a385f990990fa093b3d86e40b5fb7493ad1ad957",
    "generic": "3ba3f4d38c0a0a3c69f567ad9b463354248530686a926909a2f2048d35562822",
}


@pytest.mark.parametrize("variant", DEMO_PROMPTS)
def test_what_the_bundled_mllm_is_asked_never_changes(variant: str) -> None:
    """Records of the demo world were taken with these very words."""
    prompt = load_prompt("demo", variant, BUNDLED)
    assert prompt.texts is not None
    assert hashlib.sha256("\x1f".join(prompt.texts).encode()).hexdigest() == DEMO_PROMPTS[variant]
    assert prompt.max_new_tokens == 48
    assert (len(prompt.attributes), prompt.verdict_key) == (10, "same_species")
