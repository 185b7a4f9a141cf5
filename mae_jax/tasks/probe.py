"""What a frozen encoder is worth: k-NN and linear fits on its features (paper, section 4.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_jax.models.mae import MAE
from mae_jax.models.vit import Encoder

NAMES = {'linear': 'linear probe', 'knn': 'k-NN', 'few_labels': '100 labels'}
FEW_LABELS = 100
DRAWS = 5
"""Random sets of labelled examples over which the few-label accuracy is averaged."""


def feature_function(model: MAE) -> Callable[[Any, jax.Array], np.ndarray]:
    """(encoder parameters, normalised images [B,H,W,C]) -> mean patch token, float32 [B,D]."""
    encoder = Encoder(model.patch_size, model.width, model.depth, model.heads, dtype=model.dtype)

    @jax.jit
    def mean_token(params: Any, images: jax.Array) -> jax.Array:
        tokens = encoder.apply({'params': params}, images)
        return tokens[:, 1:].astype(jnp.float32).mean(axis=1)

    return lambda params, images: np.asarray(mean_token(params, images))


def accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """Share of test examples classified right from features [n,D], by three fits on `train`.

    `knn`: 20 nearest by cosine. `linear`: logistic regression on all labels. `few_labels`: the same
    on 100 labels, as many of each class, averaged over five draws.
    """
    knn = KNeighborsClassifier(n_neighbors=20, metric='cosine', weights='distance')
    rng = np.random.default_rng(seed)
    few = [_balanced_subset(train_labels, FEW_LABELS, rng) for _ in range(DRAWS)]
    return {
        'linear': _linear().fit(train, train_labels).score(test, test_labels),
        'knn': knn.fit(train, train_labels).score(test, test_labels),
        'few_labels': float(
            np.mean(
                [_linear().fit(train[i], train_labels[i]).score(test, test_labels) for i in few]
            )
        ),
    }


def _linear():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _balanced_subset(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `size` examples, as many of each class."""
    classes = np.unique(labels)
    per_class = max(size // len(classes), 1)
    picks = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in classes]
    return np.concatenate(picks)
