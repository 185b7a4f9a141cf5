"""What a frozen encoder is worth: k-NN and linear fits on its features (paper, section 4.1)."""

from collections.abc import Iterable

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_jax.errors import UserError

DRAWS = 5
"""Random sets of labelled examples over which a few-shot accuracy is averaged."""

LINEAR = {'logistic': lambda: LogisticRegression(max_iter=1000), 'ridge': RidgeClassifier}
"""Linear classifiers of scikit-learn; ridge is a closed form, and quick with many classes."""


def accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = 20,
    linear: str = 'logistic',
    shots: Iterable[int] = (10,),
    seed: int = 0,
) -> dict[str, float]:
    """Share of test examples classified right from features [n,D], by fits on `train`.

    `linear`: on all labels, logistic regression or ridge, features standardised. `knn`: the nearest
    by cosine, weighted by distance. `<n>_shot`: the linear fit on n labels a class, averaged over
    five draws.

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
    found = {
        'linear': linear_accuracy(slice(None)),
        'knn': knn.fit(train, train_labels).score(test, test_labels),
    }
    rng = np.random.default_rng(seed)
    for n in shots:
        draws = [_shots(train_labels, n, rng) for _ in range(DRAWS)]
        found[f'{n}_shot'] = float(np.mean([linear_accuracy(rows) for rows in draws]))
    return found


def describe(name: str) -> str:
    """What a key of `accuracies` means, in words."""
    if name.endswith('_shot'):
        return f'linear probe, {name.removesuffix("_shot")} labels a class'
    return {'linear': 'linear probe', 'knn': 'k-NN'}[name]


def _shots(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of so many examples of each class, or all of a class that has fewer."""
    picks = [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in np.unique(labels)]
    return np.concatenate(picks)
