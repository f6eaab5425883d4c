"""Bad rows are refused in words before they are queued."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from deploy.triton.limits import EngineSettings, RowLimits, check_batch
from deploy.triton.protocol import GenerationBatch, Row, Sampling, Source, Task

LIMITS = RowLimits(vocabulary=100, max_source_tokens=8, max_target_tokens=16, max_beams=4)
GOOD = Row(row_id=3, source=Source(np.array([5, 99, 0])), sampling=Sampling(max_new_tokens=16))


def batch(*rows: Row) -> GenerationBatch:
    return GenerationBatch(task=Task.GENERATION, rows=rows)


def test_a_good_batch_passes() -> None:
    check_batch(batch(GOOD, replace(GOOD, row_id=4)), LIMITS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([], np.int64), "holds 0 tokens: send 1 to 8"),
        (np.full(9, 20), "holds 9 tokens: send 1 to 8"),
        (np.array([20, 100]), "the id 100: ids are 0 to 99"),
        (np.array([-1, 20]), "the id -1"),
        (np.array([20], np.int32), "array of INT64"),
        (np.array([[20]]), "one-dimensional"),
    ],
)
def test_bad_sources_are_refused(ids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"row 3: .*{message}"):
        check_batch(batch(replace(GOOD, source=Source(ids))), LIMITS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens is 0: choose an integer from 1 to 16"),
        ("max_new_tokens", 17, "from 1 to 16"),
        ("max_new_tokens", True, "is True"),
        ("max_new_tokens", 2.0, "is 2.0"),
        ("min_new_tokens", 17, "from 0 to 16"),
        ("temperature", -0.1, "temperature is -0.1: choose a finite number of 0 or more"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", "1", "temperature is '1'"),
        ("top_k", -1, "from 0 to 100"),
        ("top_p", 0.0, "above 0, 1 at most"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("repetition_penalty", 0.0, "of 0.01 or more, 10 at most"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**63, "seed is 9223372036854775808"),
        ("num_beams", 5, "from 1 to 4"),
        ("length_penalty", 11.0, "length_penalty is 11.0"),
        ("no_repeat_ngram", -1, "no_repeat_ngram is -1"),
    ],
)
def test_bad_sampling_is_refused(name: str, value: object, message: str) -> None:
    sampling = replace(GOOD.sampling, **{name: value})
    with pytest.raises(ValueError, match=message):
        check_batch(batch(replace(GOOD, sampling=sampling)), LIMITS)


def test_ids_of_rows_are_unique() -> None:
    with pytest.raises(ValueError, match="row 3 occurs twice"):
        check_batch(batch(GOOD, GOOD), LIMITS)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        check_batch(batch(), LIMITS)


def test_settings_come_from_strings() -> None:
    settings = EngineSettings.from_parameters({"slots": "8", "verify": "false", "EXECUTION_ENV_PATH": "/opt"})
    assert settings == EngineSettings(slots=8, verify=False)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"slots": "many"}, "parameter slots is 'many': write an integer"),
        ({"slots": "0"}, "slots must be 1 or more, got 0"),
        ({"threads": "-1"}, "threads must be 0 or more"),
        ({"verify": "yes"}, "write true or false"),
    ],
)
def test_bad_settings_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineSettings.from_parameters(parameters)
