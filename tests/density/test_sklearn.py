"""The estimator's conventions, by scikit-learn's own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from counterflow.density import RelativeDensityClassifier


class Rows(RelativeDensityClassifier):
    """The classifier on what scikit-learn's checks know: each row of a 2-D array is a sequence of one frame."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        X, y = validate_data(self, X, y)
        return super().fit(X[:, None, :], y)

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(validate_data(self, X, reset=False)[:, None, :])


# Few models and steps: what is checked is how it is called, not how well it learns.
SMALL = Rows(n_models=3, n_states=1, iterations=8)


@pytest.mark.filterwarnings("ignore")  # what the checks warn of themselves
@parametrize_with_checks([SMALL])
def test_conventions(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
