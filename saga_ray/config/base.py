"""What all settings share: they are frozen, unknown keys are errors, all problems are said at once."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Config(BaseModel):
    """Base of every config model: frozen, unknown keys are errors, the text under a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Config)


def all_said(checked: Checked, problems: list[str]) -> Checked:
    """`checked` itself, if there are no problems; otherwise all of them at once, one per line."""
    if problems:
        raise ValueError("\n".join(problems))
    return checked
