"""Classifiers that see one pixel at a time (Baraka et al. 2020, table 1), and band indices.

One law: all take raw features, NaN where missing, learn from some pixels, and give probabilities of
the engine's classes. Those of scikit-learn need the extra ``peers``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from catalog.cube import CLASSES
from catalog.errors import DataError, UsageError
from model_serving.extras import require
from model_serving.peers.indices import INDICES, IndexClassifier

__all__ = ["PIXEL_CLASSIFIERS", "PixelClassifier", "build_pixel_classifier"]

Array = npt.NDArray[Any]

_TREES, _LEAF = 100, 5
# ^ trees of a forest, and the fewest pixels of a leaf: single pixels are noise
_HIDDEN = (64, 64)
_LIBRARY = "sklearn"


class PixelClassifier(Protocol):
    """Tells the class of a pixel from its own channels."""

    def fit(self, features: Array, labels: Array, rng: np.random.Generator) -> None:
        """Learn.

        Parameters
        ----------
        features : ``(pixel, channel)`` float
            Raw features in the order of :data:`model_serving.features.CHANNELS` (those of
            scikit-learn take any), NaN = missing.
        labels : ``(pixel,)`` uint8
            Classes; all known.
        rng
            Source of every random choice.
        """

    def predict(self, features: Array) -> Array:
        """Probabilities ``(pixel, class)`` float32, summing to 1."""


class _Learner:
    """A classifier of scikit-learn.

    Parameters
    ----------
    make
        From a random state to the untrained classifier.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._model: Any = None
        self._empty: Any = None

    def fit(self, features: Array, labels: Array, rng: np.random.Generator) -> None:
        """See :class:`PixelClassifier`.

        Raises
        ------
        DataError
            ``one-class`` where all pixels are of one class.
        """
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"nothing can be told apart among {len(labels)} pixels of one class or none",
                kind="one-class",
            )
        self._empty = np.isnan(features).all(axis=0)
        self._model = self._make(int(rng.integers(2**31)))
        self._model.fit(self._filled(features), labels)

    def predict(self, features: Array) -> Array:
        """See :class:`PixelClassifier`."""
        found = self._model.predict_proba(self._filled(features))
        out = np.zeros((len(features), len(CLASSES)), np.float32)
        out[:, self._model.classes_] = found
        return out

    def _filled(self, features: Array) -> Array:
        """Replace channels that had no value in training: not all learners can hold them."""
        out = np.array(features, np.float32)
        out[:, self._empty] = 0
        return out


def _forest(state: int) -> Any:
    ensemble = import_module("sklearn.ensemble")
    return ensemble.RandomForestClassifier(
        n_estimators=_TREES, min_samples_leaf=_LEAF, n_jobs=1, random_state=state
    )


def _boosting(state: int) -> Any:
    ensemble = import_module("sklearn.ensemble")
    return ensemble.HistGradientBoostingClassifier(random_state=state)


def _perceptron(state: int) -> Any:
    """What is missing becomes the mean, as it does for the networks."""
    network = import_module("sklearn.neural_network")
    return import_module("sklearn.pipeline").make_pipeline(
        import_module("sklearn.preprocessing").StandardScaler(),
        import_module("sklearn.impute").SimpleImputer(
            strategy="constant", fill_value=0.0, keep_empty_features=True
        ),
        network.MLPClassifier(_HIDDEN, early_stopping=True, random_state=state),
    )


_LEARNERS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "random-forest": ("Random forest", _forest),
    "gradient-boosting": ("Gradient boosting", _boosting),
    "mlp": ("MLP on pixels", _perceptron),
}
PIXEL_CLASSIFIERS: dict[str, str] = {
    **{name: title for name, (title, _) in _LEARNERS.items()},
    **{name: index.title for name, index in INDICES.items()},
}
"""Titles of the classifiers by name."""


def build_pixel_classifier(name: str) -> PixelClassifier:
    """Make an untrained classifier.

    Parameters
    ----------
    name
        One of :data:`PIXEL_CLASSIFIERS`.

    Raises
    ------
    UsageError
        ``classifier-unknown`` where there is none of that name, ``runtime-missing`` where
        scikit-learn is needed and not installed.
    """
    if name in INDICES:
        return IndexClassifier(INDICES[name])
    if name not in _LEARNERS:
        raise UsageError(
            f"there is no pixel classifier {name!r}; known are {', '.join(PIXEL_CLASSIFIERS)}",
            kind="classifier-unknown",
        )
    title, make = _LEARNERS[name]
    require(title, _LIBRARY, extra="peers")
    return _Learner(make)
