"""Makes the module of a trained detector, and checks that its weights belong to it."""

import jax
import jax.numpy as jnp
from flax import traverse_util

from mae_jax.config.model import image_size, make_detector
from mae_jax.errors import UserError
from mae_jax.interop.modules import Shapes, join_first, shape_differences
from mae_jax.interop.trained import DETECTED, Trained
from mae_jax.models.detection.detector import Detector


def is_detector(trained: Trained) -> bool:
    """Returns whether a model is a whole detector."""
    return trained.config.get('task') == 'detect' and 'box_head' in trained.params


def detector_of(trained: Trained) -> Detector:
    """Makes the module of a detector, without remat, scan and kernels.

    Raises:
      UserError: its weights are not those of its config.
    """
    config = trained.config.copy_and_resolve_references()
    config.model.update(remat='none', scan=False, attention='plain')
    actual = _shapes(trained.params)
    try:
        model = make_detector(config, actual[DETECTED][0] - 1)
        images = jnp.zeros((1, *image_size(config), config.dataset.channels))
        expected = _shapes(jax.eval_shape(model.init, jax.random.key(0), images)['params'])
    except UserError:
        raise
    except Exception as error:  # an untrusted config can raise errors of any kind
        raise UserError('it is damaged: its config is not that of a model.') from error
    if problems := shape_differences(actual, expected):
        raise UserError(f'it does not hold the model of its config: {join_first(problems)}.')
    return model


def _shapes(params: dict) -> Shapes:
    flat = traverse_util.flatten_dict(params, sep='/')
    return {name: tuple(array.shape) for name, array in flat.items()}
