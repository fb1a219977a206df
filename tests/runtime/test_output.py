"""What commands print."""

import json
import math

import numpy as np
import pytest

from pocketdx_runtime.manifest import Interval
from pocketdx_runtime.output import columns, to_json


def test_json_takes_dataclasses_tuples_and_numpy() -> None:
    value = {"metric": Interval(0.9, 0.8, 1.0), "row": np.array([1.5, 2.5], np.float32), "count": np.int64(3)}
    assert json.loads(to_json(value)) == {
        "metric": {"value": 0.9, "low": 0.8, "high": 1.0},
        "row": [1.5, 2.5],
        "count": 3,
    }


def test_json_never_holds_nan_or_infinity() -> None:
    value = {"a": math.nan, "b": [math.inf, (1.0, -math.inf)], "c": np.array([np.nan, 1]), "d": np.float32("inf")}
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, [1.0, None]],
        "c": [None, 1.0],
        "d": None,
    }


def test_json_survives_a_terminal_that_knows_only_ascii() -> None:
    text = to_json({"file": "größe\udcff.png"})
    assert text.isascii()
    assert json.loads(text) == {"file": "größe\udcff.png"}


def test_what_has_no_json_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="object has no JSON"):
        to_json(object())


def test_columns_are_aligned_and_lines_have_no_trailing_spaces() -> None:
    rows = [("name", "n", "note"), ("a", "10", ""), ("longer", "9", "x")]
    assert columns(rows, right=(1,)) == "name     n  note\na       10\nlonger   9  x"
