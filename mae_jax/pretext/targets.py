"""What a model predicts for each patch (paper, section 3, "Reconstruction target", and Table 1d).

A target is a small immutable object, a `Target`. Pixels, normalised pixels and PCA coefficients
are computed from the patches; tokens come from a tokenizer (`tokenizers.py`), which looks at whole
images. A target of one's own subclasses `Target`, and `target.name='module:function'` names a
function that makes it from the fields of the config group `target`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from mae_jax.errors import UserError
from mae_jax.registry import Registry, is_path

LOSS_ON = ('hidden', 'all')


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted for each patch, and how far off a prediction is.

    A subclass is a frozen dataclass too, so that models are hashable and compare by value. It
    defines `prediction_size` and `from_patches`, and whatever else differs from a regression.

    Attributes:
      loss_on: which patches the loss covers, the 'hidden' ones or 'all'.
    """

    loss_on: str = 'hidden'

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Makes the target from the fields of `config.target`; others are ignored."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: fields[name] for name in names if name in fields})

    def check(self, patch_dim: int) -> None:
        """Raises a UserError for fields that do not work with patches of `patch_dim` values."""
        if self.loss_on not in LOSS_ON:
            raise UserError(
                f'target.loss_on={self.loss_on!r} is unknown: use {" | ".join(LOSS_ON)}.'
            )

    def prediction_size(self, patch_dim: int) -> int:
        """Returns how many values are predicted for a patch of `patch_dim` values."""
        raise NotImplementedError

    def fitted_shapes(self, patch_dim: int) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of the arrays that are fitted to the data before the first step."""
        return {}

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> jax.Array | None:
        """Computes what is to be predicted.

        Args:
          patches: float32 [B, N, P*P*C].
          fitted: arrays of `fitted_shapes`.

        Returns:
          [B, N, prediction_size]; None where it is not computed from patches but passed to the
          model.
        """
        raise NotImplementedError

    def errors(self, prediction: jax.Array, expected: jax.Array) -> jax.Array:
        """Computes the mean squared error of each patch, float32 [B, N], in float32."""
        expected = expected.astype(jnp.float32)
        return jnp.square(prediction.astype(jnp.float32) - expected).mean(axis=-1)

    def mean_error(self, errors: jax.Array, mask: jax.Array) -> jax.Array:
        """Averages errors [B, N] over the patches that `loss_on` names; float32 scalar.

        Args:
          errors: float32 [B, N].
          mask: bool [B, N], True where a patch is hidden.
        """
        if self.loss_on == 'all':
            return jnp.mean(errors)
        return jnp.sum(errors * mask) / jnp.sum(mask, dtype=jnp.float32)

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Converts a prediction to patches of pixels, float32 [B, N, P*P*C].

        Args:
          prediction: float32 [B, N, prediction_size].
          patches: float32 [B, N, P*P*C], the original ones, for what the target leaves out.
          fitted: arrays of `fitted_shapes`.

        Raises:
          UserError: the target cannot be drawn.
        """
        raise UserError(f'{type(self).__name__} predicts no pixels: there is nothing to draw.')


@dataclasses.dataclass(frozen=True)
class Pixel(Target):
    """The pixels themselves."""

    def prediction_size(self, patch_dim: int) -> int:
        return patch_dim

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> jax.Array:
        return patches

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        return prediction


@dataclasses.dataclass(frozen=True)
class NormalizedPixel(Pixel):
    """The pixels, normalised by the mean and standard deviation of their own patch."""

    def check(self, patch_dim: int) -> None:
        super().check(patch_dim)
        if patch_dim < 2:
            raise UserError(
                "target.name='normalized_pixel' needs patches of two or more values: use a larger "
                "model.patch_size, or target.name='pixel'."
            )

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> jax.Array:
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Undoes the normalisation with the original patches' mean and standard deviation."""
        mean, std = patch_statistics(patches)
        return prediction * std + mean


@dataclasses.dataclass(frozen=True)
class PCA(Target):
    """The coefficients of a patch on the principal components of largest variance.

    `mean` [P*P*C] and `basis` [P*P*C, components] are fitted (`pca.py`), not trained.
    """

    components: int = 96

    def check(self, patch_dim: int) -> None:
        super().check(patch_dim)
        if not 1 <= self.components <= patch_dim:
            raise UserError(
                f'target.components={self.components}: patches of {patch_dim} values have 1 to '
                f'{patch_dim} principal components.'
            )

    def prediction_size(self, patch_dim: int) -> int:
        return self.components

    def fitted_shapes(self, patch_dim: int) -> dict[str, tuple[int, ...]]:
        return {'mean': (patch_dim,), 'basis': (patch_dim, self.components)}

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> jax.Array:
        # Full precision, on a TPU too: these are targets, not activations.
        precision = jax.lax.Precision.HIGHEST
        return jnp.dot(patches - fitted['mean'], fitted['basis'], precision=precision)

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Sums the components; what further components would add is missing."""
        precision = jax.lax.Precision.HIGHEST
        return jnp.dot(prediction, fitted['basis'].T, precision=precision) + fitted['mean']


@dataclasses.dataclass(frozen=True)
class Token(Target):
    """The index of a patch in a tokenizer's codebook, int32 [B, N], predicted as logits."""

    codes: int = 8192

    def check(self, patch_dim: int) -> None:
        super().check(patch_dim)
        if self.codes < 2:
            raise UserError(f'target.codes={self.codes}: a codebook has two codes or more.')

    def prediction_size(self, patch_dim: int) -> int:
        return self.codes

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> None:
        return None

    def errors(self, prediction: jax.Array, expected: jax.Array) -> jax.Array:
        """Computes the cross-entropy of each patch in nats, float32 [B, N], in float32."""
        prediction = prediction.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(prediction, expected)

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        raise UserError("target.name='token' predicts no pixels: there is nothing to draw.")


@dataclasses.dataclass(frozen=True)
class PredictionOnly(Target):
    """The target of a loaded model whose own function was not imported.

    The model predicts, but its loss is NaN and nothing can be drawn.
    """

    size: int = 1
    name: str = ''

    def prediction_size(self, patch_dim: int) -> int:
        return self.size

    def from_patches(self, patches: jax.Array, fitted: Mapping[str, jax.Array]) -> None:
        return None

    def pixels(
        self, prediction: jax.Array, patches: jax.Array, fitted: Mapping[str, jax.Array]
    ) -> jax.Array:
        raise UserError(
            f'target.name={self.name!r} was not imported: no file decides what is imported. '
            'Register it under this name before the model is loaded (docs/extending.md).'
        )


TARGETS = Registry(
    'target',
    'target.name',
    {
        'pixel': Pixel.from_fields,
        'normalized_pixel': NormalizedPixel.from_fields,
        'pca': PCA.from_fields,
        'token': Token.from_fields,
    },
)
"""Functions of the fields of `config.target`, a mapping, that return a `Target`, by name."""


def make_target(fields: Mapping[str, Any], unknown_size: int | None = None) -> Target:
    """Makes the target of a config.

    Args:
      fields: `config.target`: the name, and what the target needs.
      unknown_size: for a model that is loaded, how many values it predicts for a patch: a name
        'module:function' that was not imported before gives `PredictionOnly`. None imports it.

    Raises:
      UserError: the name is unknown or cannot be imported.
    """
    name = fields['name']
    if unknown_size is not None and is_path(name) and name not in TARGETS:
        return PredictionOnly(size=unknown_size, name=name)
    return TARGETS.get(name)(fields)


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes mean and standard deviation of each patch over its pixels and channels.

    Args:
      patches: float32 [B, N, P*P*C], of two values or more.

    Returns:
      mean and std, both [B, N, 1]. The variance is the unbiased one, and 1e-6 is added to it
      inside the root, as in the original: `target * std + mean` undoes the normalisation.
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return mean, std
