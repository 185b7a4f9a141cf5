"""The accuracy of k-NN and linear fits on an encoder's features (paper, section 4.1)."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_jax.errors import UserError

DRAWS = 5
"""Random sets of labelled examples over which a few-shot accuracy is averaged."""

LINEAR = {'logistic': lambda: LogisticRegression(max_iter=1000), 'ridge': RidgeClassifier}
"""Linear classifiers of scikit-learn; ridge is a closed form, and fast with many classes."""


def accuracies(
    train: Float[np.ndarray, 'n D'],
    train_labels: Int[np.ndarray, ' n'],
    test: Float[np.ndarray, 'm D'],
    test_labels: Int[np.ndarray, ' m'],
    *,
    neighbours: int = 20,
    linear: str = 'logistic',
    shots: Iterable[int] = (10,),
    seed: int = 0,
) -> dict[str, float]:
    """Measures the share of test examples that fits on the features of `train` classify correctly.

    `linear`: on all labels, logistic regression or ridge, features standardised. `knn`: the nearest
    by cosine, weighted by distance. `<n>_shot`: the linear fit on n labels a class, averaged over
    `DRAWS` draws.

    Args:
      train, train_labels, test, test_labels: features and labels of two splits.
      neighbours: of k-NN.
      linear: the kind of linear classifier, one of `LINEAR`.
      shots: numbers of labels a class.
      seed: of the draws.

    Raises:
      UserError: `linear` is unknown, or there are fewer examples than neighbours.
    """
    if linear not in LINEAR:
        raise UserError(f"linear='{linear}' is unknown: choose {' or '.join(LINEAR)}.")
    if not 1 <= neighbours <= len(train):
        raise UserError(f'{neighbours} neighbours of {len(train)} examples: choose fewer.')

    def linear_accuracy(rows: np.ndarray | slice) -> float:
        fit = make_pipeline(StandardScaler(), LINEAR[linear]())
        return fit.fit(train[rows], train_labels[rows]).score(test, test_labels)

    knn = KNeighborsClassifier(n_neighbors=neighbours, metric='cosine', weights='distance')
    metrics = {
        'linear': linear_accuracy(slice(None)),
        'knn': knn.fit(train, train_labels).score(test, test_labels),
    }
    rng = np.random.default_rng(seed)
    for n in shots:
        draws = [_sample_per_class(train_labels, n, rng) for _ in range(DRAWS)]
        metrics[f'{n}_shot'] = float(np.mean([linear_accuracy(rows) for rows in draws]))
    return metrics


def accuracy_title(name: str) -> str:
    """Returns the title of a key of `accuracies`, for tables."""
    if name.endswith('_shot'):
        shots = name.removesuffix('_shot')
        return f'linear probe, {shots} {"label" if shots == "1" else "labels"} a class'
    return {'linear': 'linear probe', 'knn': 'k-NN'}[name]


def _sample_per_class(
    labels: Int[np.ndarray, ' n'], count: int, rng: np.random.Generator
) -> Int[np.ndarray, ' k']:
    """Draws the indices of `count` examples of each class, or of all where a class has fewer."""
    picks = [rng.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)]
    return np.concatenate(picks)
