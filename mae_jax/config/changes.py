"""Compares the configs of two starts of a run: which fields differ, and which of them may."""

import fnmatch
import json
from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.saved import as_tuples, to_json

MAY_CHANGE = (
    # How a run is computed, watched and stored. All other fields define the run itself.
    'deterministic',
    '*_timeout_s',
    'optimizer.skip_nonfinite',  # until one is skipped the run is the same
    'model.remat',
    'model.scan',
    'model.attention',
    'model.before_nms',  # of an evaluation alone, as the next three
    'model.detection_nms',
    'model.detections',
    'model.score_threshold',
    'dataset.path',  # the data set's identity is checked against the checkpoint
    'dataset.annotations',
    'dataset.threads',
    'dataset.workers',
    'dataset.prefetch',
    'dataset.timeout_s',
    'dataset.max_bad_share',
    'dataset.eval_split',
    'dataset.eval_crop_share',
    'inference',
    'stride',
    'optimizer.accumulate',
    'mesh.*',
    'log_every_steps',
    'eval_*',
    'image_every_steps',
    'checkpoint_every_*',
    'keep_*',
    'probe_at_end',
    'online_probe.*',
    'per_class',
    'loggers',
    'profile_steps',
)

ADDED = {
    'model.encoder_mask_tokens': False,
    'target.loss_on': 'hidden',
    'target.components': 96,
    'target.sample': 4096,
    'target.tokenizer': None,
    'target.codes': 8192,
    'step_timeout_s': 1800.0,
    'optimizer.skip_nonfinite': 0,
    'optimizer.schedule': 'cosine',
    'model.attention': 'plain',
    'model.norm_eps': None,
    'model.residual_dtype': 'bfloat16',
    'model.relative_positions': None,
    'model.layer_scale': None,
    'model.key_bias': None,
    'model.absolute_positions': None,
    'model.cls_token': None,
    'model.window': None,
    'model.global_blocks': None,
    'new_channels': None,
    'dataset.repeats': 1,
    'dataset.resize': 'host',
    'dataset.canvas': 384,
    'max_images_seen': None,
    'dataset.bands': None,
    'dataset.nodata': None,
    'dataset.held_out_share': 0.05,
    'loggers': ('tensorboard',),
    'profile_steps': None,
    'checkpoint_every_minutes': 0.0,
    'connect_timeout_s': 300.0,
    'heartbeat_timeout_s': 100.0,
    'probe_block': -1,
}
"""Fields that the configs of earlier versions lack, with the values that those runs had."""


def changed_fields(old: ConfigDict, new: ConfigDict) -> dict[str, str]:
    """Returns the fields that differ: dotted name -> 'field was 1, now 2', sorted by name."""
    before, now = (flatten(json.loads(to_json(config))) for config in (old, new))
    before = {field: value for field, value in ADDED.items() if field in now} | before
    missing = object()
    changes = {}
    for field in sorted(before.keys() | now.keys()):
        values = before.get(field, missing), now.get(field, missing)
        differ = values[0] != values[1] and repr(values[0]) != repr(values[1])  # nan != nan
        if differ and field != 'mode':  # trained or evaluated, it is the same run
            texts = ['unset' if x in (missing, None) else repr(x) for x in values]
            changes[field] = f'{field} was {texts[0]}, now {texts[1]}'
    return changes


def may_change(field: str) -> bool:
    """Returns whether a field, by its dotted name, may differ between starts of a run."""
    return any(fnmatch.fnmatchcase(field, pattern) for pattern in MAY_CHANGE)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns dotted name -> value of nested dictionaries; sequences become tuples."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = as_tuples(value)
    return flat
