"""The estimator's conventions, by scikit-learn's own checks."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

from counterflow.density import RelativeDensityClassifier


class Rows(RelativeDensityClassifier):
    """The classifier on what the checks know: each row of a 2-D array is a sequence of one frame.

    Of the classifier itself, which takes sequences and says so in its tags, they check nothing but that it can be
    cloned. With this all of them apply, and none is expected to fail.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        X, y = validate_data(self, X, y)
        return super().fit(X[:, None, :], y)

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(validate_data(self, X, reset=False)[:, None, :])


@pytest.mark.filterwarnings("ignore")  # what the checks warn of themselves, and of what they do on purpose
def test_scikit_learns_checks_pass() -> None:
    # Few models and steps: what is checked is how it is called, not how well it learns.
    small = Rows(n_models=3, n_states=1, iterations=8)
    results = check_estimator(small, on_fail=None, on_skip=None)
    failed = {each["check_name"]: repr(each["exception"]) for each in results if each["status"] not in _FINE}
    assert failed == {}
    assert sum(each["status"] == "passed" for each in results) > 40


_FINE = ("passed", "skipped")  # skipped where pandas or an array API is not there
