"""The config of the task 'robustness' for a model and a folder: what `mae-jax robustness` runs."""

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from mae_jax.config.fields import apply_overrides
from mae_jax.config.files import load_config
from mae_jax.data.sources.listing import find_split
from mae_jax.data.sources.splits import EVAL_SPLITS, TRAIN_SPLITS
from mae_jax.evaluation.robustness_sets import find_kind
from mae_jax.experiment.workdir import has_begun
from mae_jax.interop.hub import is_hub
from mae_jax.interop.read import read_config


def make_config(
    model: str,
    *,
    data: str | None = None,
    kind: str | None = None,
    classes: str | None = None,
    images: int | None = None,
    overrides: Sequence[str] = (),
) -> ConfigDict:
    """Returns the config that evaluates a classifier on a folder.

    Args:
      model: path of the classifier, for `init_from`.
      data: the folder; None for the images that a run has held out, as the folder does that the
        run has its images from. Of another one with splits the evaluation split is taken, else all
        images.
      kind: of configs/robustness.py; None for what the folder looks like.
      classes: `robustness.classes`.
      images: `eval_examples`.
      overrides: 'field=value' texts.

    Raises:
      UserError: there is no such model or kind, or an override does not work.
    """
    kind = kind or (find_kind(data) if data else 'corruptions')
    config = load_config(f'robustness:{kind}')
    config.init_from = model
    config.robustness.classes = classes
    config.eval_examples = images
    if data and not (kind == 'corruptions' and _is_of(model, data)):
        config.dataset.name, config.dataset.path = 'folder', data
        splits = os.path.isdir(data) and find_split(data, (*TRAIN_SPLITS, *EVAL_SPLITS))
        if not splits:
            config.dataset.eval_split = '.'
    apply_overrides(config, overrides)
    return config


def _is_of(model: str, folder: str) -> bool:
    """Returns whether a model was trained on the images in a folder."""
    path = read_config(model).dataset.get('path')
    return bool(path) and os.path.abspath(path) == os.path.abspath(folder)


def within(model: str, config: ConfigDict) -> str | None:
    """Returns the directory of the results in that of a run; None where the model is no run."""
    if is_hub(model) or not has_begun(model):
        return None
    return os.path.join(model, 'robustness', config.robustness.kind)
