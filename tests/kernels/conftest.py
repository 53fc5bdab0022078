"""Failures in the shared tables show the compared values, as in test files."""

import pytest

pytest.register_assert_rewrite(
    "helpers.kernel_truth", "helpers.label_tables", "helpers.loss_tables", "helpers.ohem_tables"
)
