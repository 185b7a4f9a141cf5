"""What a model predicts for each patch (paper, section 3, "Reconstruction target", and Table 1d).

A target is a small immutable object, a `Target`. Pixels, normalised pixels and PCA coefficients
are computed from the patches; tokens come from a tokenizer (`tokenizers.py`), which looks at whole
images. A target of one's own subclasses `Target`, and `target.name='module:function'` names a
function that makes it from the fields of the config group `target`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int, Shaped
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.registry import Registry, is_path

LOSS_ON = ('hidden', 'all')

Patches = Float32[ArrayLike, '*B V']
Prediction = Float[ArrayLike, '*B M']
Fitted = Mapping[str, Float32[ArrayLike, '...']]
Fields = ConfigDict | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted for each patch, and the error of a prediction.

    A subclass is a frozen dataclass too, because models are compared and hashed by their fields. It
    defines `prediction_size` and `from_patches`, and whatever else differs from a regression.

    Attributes:
      loss_on: which patches the loss covers, the 'hidden' ones or 'all'.
      has_pixels: whether `pixels` is defined, and predictions can be drawn.
      caption: what a reader of a drawn prediction has to know.
    """

    loss_on: str = 'hidden'
    has_pixels: ClassVar[bool] = False
    caption: ClassVar[str] = ''

    @classmethod
    def from_fields(cls, fields: Fields) -> 'Target':
        """Makes the target from those fields of `config.target` that it has."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: fields[name] for name in names if name in fields})

    def check(self, patch_dim: int) -> None:
        """Raises a UserError for fields that do not work with patches of `patch_dim` values."""
        if self.loss_on not in LOSS_ON:
            raise UserError(
                f'target.loss_on={self.loss_on!r} is unknown: use {" | ".join(LOSS_ON)}.'
            )

    def prediction_size(self, patch_dim: int) -> int:
        """Returns M, how many values are predicted for a patch of `patch_dim` values."""
        raise NotImplementedError

    def fitted_shapes(self, patch_dim: int) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of the arrays that are fitted to the data before the first step."""
        return {}

    def from_patches(self, patches: Patches, fitted: Fitted) -> Float32[ArrayLike, '*B M'] | None:
        """Computes what is to be predicted from patches and the arrays of `fitted_shapes`.

        Returns:
          M values a patch; None where the target is not computed from patches but passed to the
          model.
        """
        raise NotImplementedError

    def errors(
        self, prediction: Prediction, expected: Shaped[ArrayLike, '*B M']
    ) -> Float32[Array, '*B']:
        """Computes the mean squared error of each patch, in float32."""
        expected = expected.astype(jnp.float32)
        return jnp.square(prediction.astype(jnp.float32) - expected).mean(axis=-1)

    def mean_error(
        self, errors: Float32[ArrayLike, '*B'], mask: Bool[ArrayLike, '*B']
    ) -> Float32[Array, '']:
        """Averages errors over the patches that `loss_on` names; `mask` is True where hidden."""
        if self.loss_on == 'all':
            return jnp.mean(errors)
        return jnp.sum(errors * mask) / jnp.sum(mask, dtype=jnp.float32)

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
        """Converts a prediction to patches of pixels, where `has_pixels` is True.

        Args:
          prediction: M values a patch.
          patches: the original ones, for what the target leaves out.
          fitted: arrays of `fitted_shapes`.

        Raises:
          UserError: the target cannot be drawn.
        """
        raise UserError(f'{type(self).__name__} predicts no pixels, and cannot be drawn.')


@dataclasses.dataclass(frozen=True)
class Pixel(Target):
    """The pixels themselves."""

    has_pixels: ClassVar[bool] = True

    def prediction_size(self, patch_dim: int) -> int:
        return patch_dim

    def from_patches(self, patches: Patches, fitted: Fitted) -> Patches:
        return patches

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
        return prediction


@dataclasses.dataclass(frozen=True)
class NormalizedPixel(Pixel):
    """The pixels, normalised by the mean and standard deviation of their own patch."""

    caption: ClassVar[str] = (
        "The model predicts normalised pixels; mean and deviation of a patch are the original's."
    )

    def check(self, patch_dim: int) -> None:
        super().check(patch_dim)
        if patch_dim < 2:
            raise UserError(
                "target.name='normalized_pixel' needs patches of two or more values: use a larger "
                "model.patch_size, or target.name='pixel'."
            )

    def from_patches(self, patches: Patches, fitted: Fitted) -> Patches:
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
        """Undoes the normalisation by the mean and standard deviation of the original patches."""
        mean, std = patch_statistics(patches)
        return prediction * std + mean


@dataclasses.dataclass(frozen=True)
class PCA(Target):
    """The coefficients of a patch for the principal components of largest variance.

    The arrays `mean` [V] and `basis` [V, components] are fitted (`pca.py`), not trained.
    """

    components: int = 96
    has_pixels: ClassVar[bool] = True

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

    def from_patches(self, patches: Patches, fitted: Fitted) -> Float32[Array, '*B M']:
        # Full precision, on a TPU too: these are targets, not activations.
        precision = jax.lax.Precision.HIGHEST
        return jnp.dot(patches - fitted['mean'], fitted['basis'], precision=precision)

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
        """Sums the components; what further components would add is missing."""
        precision = jax.lax.Precision.HIGHEST
        return jnp.dot(prediction, fitted['basis'].T, precision=precision) + fitted['mean']


@dataclasses.dataclass(frozen=True)
class Token(Target):
    """The code of a patch in a tokenizer's codebook, predicted as logits of all codes."""

    codes: int = 8192

    def check(self, patch_dim: int) -> None:
        super().check(patch_dim)
        if self.codes < 2:
            raise UserError(f'target.codes={self.codes}: a codebook has two codes or more.')

    def prediction_size(self, patch_dim: int) -> int:
        return self.codes

    def from_patches(self, patches: Patches, fitted: Fitted) -> None:
        return None

    def errors(
        self, prediction: Prediction, expected: Int[ArrayLike, '*B']
    ) -> Float32[Array, '*B']:
        """Computes the cross-entropy of each patch in nats, in float32; NaN for an unknown code."""
        prediction = prediction.astype(jnp.float32)
        # Not by a lookup of the code, whose gradient would be a scatter.
        one_hot = jax.nn.one_hot(expected, prediction.shape[-1])
        is_known = (expected >= 0) & (expected < prediction.shape[-1])
        return jnp.where(is_known, optax.softmax_cross_entropy(prediction, one_hot), jnp.nan)

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
        raise UserError("target.name='token' predicts no pixels, and cannot be drawn.")


@dataclasses.dataclass(frozen=True)
class PredictionOnly(Target):
    """The target of a loaded model whose own function was not imported.

    The model predicts, but its loss is NaN and nothing can be drawn.
    """

    size: int = 1
    name: str = ''

    def prediction_size(self, patch_dim: int) -> int:
        return self.size

    def from_patches(self, patches: Patches, fitted: Fitted) -> None:
        return None

    def pixels(self, prediction: Prediction, patches: Patches, fitted: Fitted) -> Patches:
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


def make_target(fields: Fields, unknown_size: int | None = None) -> Target:
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


def patch_statistics(
    patches: Float32[ArrayLike, '*B V'],
) -> tuple[Float32[Array, '*B 1'], Float32[Array, '*B 1']]:
    """Computes mean and standard deviation of each patch over its pixels and channels.

    The variance is the unbiased one, of two values or more, and 1e-6 is added to it inside the
    root, as in the original: `target * std + mean` undoes the normalisation.
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return mean, std
