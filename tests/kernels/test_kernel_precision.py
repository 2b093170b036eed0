"""The error budget: no result of the kernels is further from float64 than 2.25 times plain torch in the same dtype."""

from __future__ import annotations

import pytest
from kernel_precision import ATTENTION, CASES, DTYPES, NORMS, errors, worst_share
from kernel_runs import RUNS_KERNELS

pytestmark = RUNS_KERNELS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_within_the_error_budget_of_plain_torch(case, dtype):
    for norms in NORMS.values() if case in ATTENTION else [1.0]:
        kernels, plain = errors(case, DTYPES[dtype], norms)
        assert worst_share(case, kernels, plain) <= 1, (kernels, plain)
