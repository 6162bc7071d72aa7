"""Sentences for the user, and errors that are mistakes of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saga_ray.config.keys import flat
from saga_ray.configure import check_run_name
from saga_ray.errors import Refused, is_ours, marked_refusals
from saga_ray.storage import Storage
from saga_ray.train.errors import check_finite

OURS = [lambda: check_run_name("../x"), lambda: check_finite("loss", float("nan"), 3), lambda: Storage.open("odd://x")]


class Odd(dict):
    """Makes a library's error appear below a function of ours."""

    def items(self) -> Any:
        return np.zeros(3).reshape(2, 2)


FOREIGN = [lambda: flat(Odd()), lambda: int("four"), lambda: json.loads("{"), lambda: b"\xff".decode()]


def _raised(call: Callable[[], Any]) -> ValueError:
    with pytest.raises(ValueError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("call", OURS)
def test_what_our_code_raises_is_a_sentence_and_stays_marked_as_one(call: Callable[[], Any]) -> None:
    error = _raised(call)
    assert is_ours(error)
    with pytest.raises(Refused) as caught, marked_refusals():
        call()
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("call", FOREIGN)
def test_what_a_library_raises_is_none(call: Callable[[], Any]) -> None:
    error = _raised(call)
    assert not is_ours(error)
    with pytest.raises(type(error)) as caught, marked_refusals():
        call()
    assert not isinstance(caught.value, Refused)
