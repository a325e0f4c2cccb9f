"""A classifier of sequences in scikit-learn's conventions, made of a density net.

Source: A. D. Brown, G. E. Hinton, "Relative Density Nets", NIPS 2001. Sequences are arrays (time, features) of unequal
length, labels whatever scikit-learn takes. scikit-learn itself is not needed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from counterflow import persist
from counterflow.density.hmm import pad
from counterflow.density.nets import (
    Alphanet,
    ComparativeDensityNet,
    ComparativeDensityNet1,
    DensityNet,
    MixtureNet,
    RelativeDensityNet,
)
from counterflow.density.training import Training, conjugate_gradients, train
from counterflow.exceptions import InputError, ShapeError

__all__ = ["RelativeDensityClassifier"]

_KIND = "relative density classifier"
_NETS = ("rdn", "alphanet", "mixture", "cdn", "cdn1")


class RelativeDensityClassifier:
    """Classes of sequences by relative densities, or by one of the nets that they were compared with.

    Args:
        n_models: Hidden Markov models (``net="rdn"``, ``"cdn"``, ``"cdn1"``; the others have one a class), three or
            more for a relative density net.
        n_states: States of each; for ``net="mixture"`` Gaussians of each.
        net: ``"rdn"``, ``"alphanet"``, ``"mixture"``, ``"cdn"`` or ``"cdn1"``.
        n_hidden: Logistic units (``net="cdn"``); as many as pairs if not given.
        time_average: Whether log-likelihoods are divided by the length.
        topology: ``"ergodic"`` or ``"left-to-right"``.
        tied: Whose variances are one: ``"none"``, ``"states"``, ``"models"``.
        optimizer: ``"cg"`` (conjugate gradients, the paper's) or ``"adam"``.
        learning_rate: Adam's.
        iterations: Line searches or steps; the paper has 90.
        baum_welch: Steps of Baum-Welch on the class of each model before; the paper has none.
        weight_scale: Standard deviation of initial weights behind the models.
        standardize: Whether features are brought to mean 0 and variance 1 over all training frames.
        random_state: Seed of all that is random.

    Attributes:
        classes_: The labels, sorted.
        n_features_in_: Features of a frame.
        net_: The trained net, in float64.
        training_: How the training went.

    References:
        A. D. Brown, G. E. Hinton, Relative Density Nets, NIPS 2001.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sequences = [rng.normal(size=(rng.integers(5, 20), 3)) + 2 * (i % 2) for i in range(20)]
        >>> labels = ["low", "high"] * 10
        >>> clf = RelativeDensityClassifier(n_models=3, n_states=2, iterations=10).fit(sequences, labels)
        >>> clf.score(sequences, labels)
        1.0
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        n_models: int = 16,
        n_states: int = 4,
        *,
        net: Literal["rdn", "alphanet", "mixture", "cdn", "cdn1"] = "rdn",
        n_hidden: int | None = None,
        time_average: bool = True,
        topology: Literal["ergodic", "left-to-right"] = "ergodic",
        tied: Literal["none", "states", "models"] = "none",
        optimizer: Literal["cg", "adam"] = "cg",
        learning_rate: float = 0.02,
        iterations: int = 90,
        baum_welch: int = 0,
        weight_scale: float = 0.1,
        standardize: bool = True,
        random_state: int = 0,
    ) -> None:
        self.n_models = n_models
        self.n_states = n_states
        self.net = net
        self.n_hidden = n_hidden
        self.time_average = time_average
        self.topology = topology
        self.tied = tied
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.iterations = iterations
        self.baum_welch = baum_welch
        self.weight_scale = weight_scale
        self.standardize = standardize
        self.random_state = random_state

    def __repr__(self) -> str:
        return f"RelativeDensityClassifier({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name; ``deep`` is of no consequence, since none is an estimator."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor.

        Raises:
            InputError: If there is no such argument.
        """
        for name, value in params.items():
            if name not in self._names():
                raise InputError(f"there is no parameter {name!r}; there are {', '.join(self._names())}")
            setattr(self, name, value)
        return self

    def fit(self, X: Sequence[ArrayLike], y: ArrayLike) -> Self:
        """Learn to tell the classes of sequences.

        Args:
            X: Sequences, each an array (time, features).
            y: Their labels.

        Returns:
            The classifier itself.

        Raises:
            DivergenceError: If Adam runs away at this ``learning_rate``.
            InputError, ShapeError: If an argument cannot be used.
        """
        for name, choices in (("net", _NETS), ("optimizer", ("cg", "adam"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.n_hidden is not None and self.net != "cdn":
            raise InputError(f"n_hidden={self.n_hidden} is for net='cdn', and net is {self.net!r}; leave it out")
        if self.baum_welch < 0:
            raise InputError(f"baum_welch must be 0 or more, got {self.baum_welch}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        sequences = _tensors(X)
        x, lengths = pad(sequences)
        labels = np.asarray(y)
        if labels.shape != (len(sequences),):
            raise ShapeError(f"y must be one label a sequence, shape ({len(sequences)},), got {labels.shape}")
        if np.issubdtype(labels.dtype, np.floating) and bool((labels != np.floor(labels)).any()):
            odd = labels[labels != np.floor(labels)][0]
            raise InputError(
                f"Unknown label type: y holds {odd:g}, and labels name classes; give whole numbers or text"
            )
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"y has the one class {classes.tolist()[0]!r} only; two are needed to tell them apart")
        inside = torch.arange(x.shape[1]) < lengths[:, None]
        frames = x[inside]
        if not bool(frames.isfinite().all()):
            worst = next(i for i, each in enumerate(sequences) if not bool(each.isfinite().all()))
            raise InputError(f"X[{worst}] holds values that are not finite; leave it out, or mend it")
        mean = frames.mean(0) if self.standardize else torch.zeros(x.shape[2]).double()
        spread = frames.std(0, correction=0)
        constant = spread <= 1e-12 * (1 + frames.abs().amax(0))
        scale = torch.where(constant, 1.0, spread) if self.standardize else torch.ones(x.shape[2]).double()
        x = torch.where(inside.unsqueeze(-1), (x - mean) / scale, 0.0)
        targets = torch.from_numpy(codes.astype(np.int64))
        generator = torch.Generator().manual_seed(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            net = self._build(len(classes), x.shape[2])
        net.initialize(x, lengths, targets, generator=generator)
        if self.baum_welch:
            owner = torch.arange(net.bank.n_models) % len(classes)
            own = (targets[:, None] == owner).double()
            net.bank.fit(x, lengths, weights=own, iterations=self.baum_welch, generator=generator)
        if self.optimizer == "cg":
            training = conjugate_gradients(net, x, lengths, targets, iterations=self.iterations)
        else:
            adam = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            training = train(net, x, lengths, targets, adam, iterations=self.iterations)
        # All at once: a second fit that fails or is stopped leaves what the first has learned.
        self.classes_, self.n_features_in_, self._mean, self._scale = classes, x.shape[2], mean, scale
        self.training_: Training = training
        self._fitted = self._plain()
        self.net_ = net
        return self

    def predict_proba(self, X: Sequence[ArrayLike]) -> NDArray[np.float64]:
        """The probability of each class, shape (sequences, classes), in the order of ``classes_``.

        Raises:
            InputError, ShapeError: If a sequence cannot be used, or the classifier has not been fitted (an error that
                is scikit-learn's ``NotFittedError``, too, where that is installed).
        """
        if not hasattr(self, "net_"):
            raise _not_fitted()
        x, lengths = pad(_tensors(X))
        if x.shape[2] != self.n_features_in_:
            raise ShapeError(f"X has {x.shape[2]} features a frame; {self.n_features_in_} were fitted")
        with torch.no_grad():
            logits = self.net_((x - self._mean) / self._scale, lengths)
            found: NDArray[np.float64] = logits.softmax(-1).numpy()
        return found

    def predict(self, X: Sequence[ArrayLike]) -> NDArray[Any]:
        """The likeliest class of each sequence.

        Raises:
            InputError, ShapeError: As `predict_proba`.
        """
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def score(self, X: Sequence[ArrayLike], y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The share of sequences whose label is predicted, weighted if weights are given.

        Raises:
            InputError, ShapeError: As `predict_proba`; ``ShapeError`` also if ``y`` is not one label a sequence.
        """
        found, labels = self.predict(X), np.asarray(y)
        if labels.shape != found.shape:
            raise ShapeError(f"y must be one label a sequence, shape {found.shape}, got {labels.shape}")
        right = found == labels
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to a folder as safetensors and JSON, with the parameters that it was fitted with.

        Raises:
            InputError: If it has not been fitted, if the folder cannot be written, or if labels are neither text nor
                numbers.
        """
        if not hasattr(self, "net_"):
            raise InputError("this classifier has not been fitted; there is nothing to save")
        config, tensors = self._stored()
        persist.save(folder, _KIND, config, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            InputError: If there is no such model, or it is damaged.
        """
        return cls._restored(*persist.load(folder, _KIND), str(folder))

    def _stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config = {
            "parameters": self._fitted,  # those of the net; `set_params` is for the next fit
            "classes": self.classes_.tolist(),
            "features": self.n_features_in_,
            "training": {"iterations": self.training_.iterations, "evaluations": self.training_.evaluations},
            "losses": list(self.training_.losses),
            "message": self.training_.message,
        }
        tensors = {f"net.{name}": value for name, value in self.net_.state_dict().items()}
        return config, tensors | {"mean": self._mean, "scale": self._scale}

    @classmethod
    def _restored(cls, config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Self:
        try:
            found = cls(**config["parameters"])
            found.classes_ = np.asarray(config["classes"])
            found.n_features_in_ = int(config["features"])
            found.training_ = Training(losses=tuple(config["losses"]), message=config["message"], **config["training"])
            found._mean, found._scale = tensors["mean"], tensors["scale"]
            for name in ("mean", "scale"):
                if tuple(tensors[name].shape) != (found.n_features_in_,):
                    of = f"its configuration says {found.n_features_in_} features"
                    raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, and {of}")
            with torch.random.fork_rng(devices=[]):
                net = persist.fill(
                    lambda: found._build(len(found.classes_), found.n_features_in_),
                    {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")},
                )
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"the model in {where} is damaged: {' '.join(str(error).split())}; save it again"
            ) from error
        found.net_, found._fitted = net, found._plain()
        return found

    def _plain(self) -> dict[str, Any]:
        """The parameters with Python's own numbers in place of NumPy's, which a grid of a search is made of."""
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in self.get_params().items()}

    def _build(self, classes: int, features: int) -> DensityNet:
        given = self._plain()
        hmm: dict[str, Any] = {"topology": self.topology, "tied": self.tied, "dtype": torch.float64}
        sizes = (given["n_models"], given["n_states"], features, classes)
        if self.net == "alphanet":
            return Alphanet(*sizes[1:], time_average=self.time_average, **hmm)
        if self.net == "mixture":
            return MixtureNet(*sizes[1:], time_average=self.time_average, **hmm)
        options = {"time_average": self.time_average, "weight_scale": given["weight_scale"], **hmm}
        if self.net == "cdn":
            return ComparativeDensityNet(*sizes, given["n_hidden"], first_scale=given["weight_scale"], **options)
        kind = RelativeDensityNet if self.net == "rdn" else ComparativeDensityNet1
        return kind(*sizes, **options)


def _not_fitted() -> InputError:
    """The error of a classifier that was not fitted; where scikit-learn is installed, it is its own kind, too."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        kind: type[InputError] = InputError
    else:
        kind = type("NotFittedError", (InputError, NotFittedError), {})
    return kind("this classifier has not been fitted; call fit(sequences, labels) first")


def _tensors(X: Sequence[ArrayLike]) -> list[Tensor]:
    """The sequences in double precision."""
    if not len(X):
        raise InputError("X is empty; give at least one sequence")
    return [torch.as_tensor(np.asarray(each, dtype=np.float64)) for each in X]
