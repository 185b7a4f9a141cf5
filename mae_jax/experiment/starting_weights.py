"""Loads `init_from`: the weights of another run, fitted to the model of this one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from mae_jax.config.model import encoder_options, image_size, make_architecture, norm_eps
from mae_jax.errors import UserError
from mae_jax.interop.load import NEW_CHANNELS, adapt_channels, adapt_prediction
from mae_jax.interop.read import read_model
from mae_jax.interop.resize import resize_encoder
from mae_jax.interop.trained import COLLECTIONS
from mae_jax.models.options import ADDED
from mae_jax.models.patches import grid_size
from mae_jax.runtime.processes import say
from mae_jax.training.sharding import put

ENCODER = 'encoder/'
POSITIONS = 'encoder/pos_embed'
PATCH_KERNEL = 'encoder/patch_embed/kernel'
PREDICTION = ('decoder/head/kernel', 'decoder/head/bias')
Flat = dict[str, Any]


class Loaded(NamedTuple):
    """Weights of another run in the place of initial values."""

    params: Any
    model_state: Any
    resized: list[str]
    """Lines for the console: positions that were resized, channels that were adapted."""
    report: list[str]
    """Lines for the console: what was loaded, resized, left at its initial value, ignored."""
    initial: list[str]
    """Names of the parameters and running statistics left at their initial values."""
    step: int
    """Step of the checkpoint that was read; 0 where it is not known."""


def load_weights(
    path: str,
    config: ConfigDict,
    params: Any,
    model_state: Any,
    *,
    required: Callable[[str], bool],
) -> Loaded:
    """Replaces initial values by the weights of another run.

    The encoder's positions are resized where the number of patches differs (`resize_encoder`).
    What its options add to the other's starts at its initial values. Further parameters are taken
    where name and shape agree.

    Args:
      path: of the other model, as for `read_model`.
      config: of the run that is about to start.
      params, model_state: its initial values, laid out over the devices.
      required: whether a parameter must be there on both sides, and of one shape.

    Raises:
      UserError: there is no checkpoint, or what it holds is of another architecture.
    """
    weights = read_model(path, say)
    source = weights.config
    available, expected = _flat(weights.params), _flat(params)
    ended = _end_at_probe_block(available, config)
    resized = _fit_encoder(available, expected, source, config)
    resized += _adapt_channels(available, expected, source, config) + ended
    _check_architecture(path, available, expected, source, config, required)
    loaded = {n: v for n, v in available.items() if _shape(expected.get(n)) == v.shape}
    initial = expected.keys() - loaded.keys()
    statistics = _flat(weights.model_state)
    if any(name.startswith('head/') for name in initial):
        statistics = {}  # running statistics are of no use to another head
    # A tokenizer's weights are state too, but are read from their own file.
    running = {name for name in _flat(model_state) if name.split('/')[0] in COLLECTIONS}
    initial |= running - statistics.keys()
    report = [
        f'starting from {_described(path, weights.step)}; loaded: {_groups(loaded, expected)}',
        *resized,
        *_other_statistics(source, config),
        f'  left at their initial values: {_groups(initial, expected.keys() | initial)}',
        f'  ignored: {_groups(available.keys() - loaded.keys(), available)}',
    ]
    params, model_state = _replace(params, loaded), _replace(model_state, statistics)
    return Loaded(params, model_state, resized, report, sorted(initial), weights.step or 0)


def _check_architecture(
    path: str,
    available: Flat,
    expected: Flat,
    source: ConfigDict,
    config: ConfigDict,
    required: Callable[[str], bool],
) -> None:
    """Raises a UserError where `init_from` holds another model than this run trains."""
    trained, ours = (
        make_architecture(c.model) | {'norm_eps': norm_eps(c.model)} for c in (source, config)
    )
    if config.get('probe_block', -1) != -1:
        trained['depth'] = min(trained['depth'], ours['depth'])
    # The number of heads and the epsilon of the norms show in no shape.
    differing = [
        f'model.{field}: {trained[field]} there, {ours[field]} here'
        for field in ours
        if trained[field] != ours[field]
    ]
    differing += [
        f'{name}: {_shape(available.get(name))} there, {_shape(expected.get(name))} here'
        for name in sorted(available.keys() | expected.keys())
        if required(name) and _shape(available.get(name)) != _shape(expected.get(name))
        if not (name not in available and name.rpartition('/')[2] in ADDED)
        if not _left_out(name, config)
    ]
    if differing and all(line.startswith('decoder/head/') for line in differing):
        raise UserError(
            f'init_from={path} predicts another target.name, or another number of '
            f'target.components or target.codes ({"; ".join(differing)}): give what it was '
            'trained with.'
        )
    old, new = source.dataset.channels, config.dataset.channels
    if old != new and not config.get('new_channels'):
        raise UserError(
            f'init_from={path} was trained on {old} channel(s), where dataset.channels={new}: give '
            '--config.new_channels=average or =repeat to adapt its patch embedding.'
        )
    if differing:
        shown = '; '.join(differing[:5]) + ('; ...' if len(differing) > 5 else '')
        raise UserError(
            f'init_from={path} holds another model ({shown}): give the model fields it was '
            'trained with, or leave them unset to take them from it.'
        )


def _end_at_probe_block(available: Flat, config: ConfigDict) -> list[str]:
    """Leaves out the blocks of the encoder after `probe_block`; returns a line about it."""
    block = config.get('probe_block', -1)
    names = [name for name in available if name.startswith('encoder/blocks/')]
    later = [n for n in names if int(n.split('/')[2].removeprefix('block_')) > block]
    if block == -1 or not later:
        return []
    for name in later:
        del available[name]
    return [f'  features after block {block} (probe_block={block}): later blocks are left out']


def _fit_encoder(
    available: Flat, expected: Flat, source: ConfigDict, config: ConfigDict
) -> list[str]:
    """Fits the encoder in `available` to the options and the grid of this run; returns lines."""
    options = encoder_options(config.model)
    if POSITIONS in available and not options.cls_token and encoder_options(source.model).cls_token:
        available[POSITIONS] = available[POSITIONS][:, 1:]
    if not options.key_bias:
        for name in available:
            if name.startswith(ENCODER) and name.endswith('/qkv/bias'):
                available[name] = np.array(available[name])
                available[name].reshape(3, -1)[1] = 0.0
    old, new = (
        grid_size(image_size(c), make_architecture(c.model)['patch_size']) for c in (source, config)
    )
    encoder = {n.removeprefix(ENCODER): v for n, v in available.items() if n.startswith(ENCODER)}
    shapes = [_shape(arrays.get('encoder/patch_embed/bias')) for arrays in (available, expected)]
    if old == new or shapes[0] != shapes[1]:  # another width, which `_check_architecture` reports
        return []
    resized = resize_encoder(encoder, old, new, options)
    available |= {f'{ENCODER}{name}': array for name, array in resized.items()}
    if not resized:
        return []
    return [f'  positions resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches']


def _other_statistics(source: ConfigDict, config: ConfigDict) -> list[str]:
    """Returns a line where images are normalised by other numbers than those of the other run."""
    fields = ('mean', 'std')
    theirs, ours = ({n: tuple(c.dataset[n]) for n in fields} for c in (source, config))
    if theirs == ours or len(theirs['mean']) != len(ours['mean']):
        return []
    there = ', '.join(f'dataset.{name}={theirs[name]}' for name in fields)
    return [f'  note: it was trained with {there}, and this run has others']


def _left_out(name: str, config: ConfigDict) -> bool:
    """Returns whether the options of this run leave out a parameter that others have."""
    options = encoder_options(config.model)
    has_it = {f'{ENCODER}cls_token': options.cls_token, POSITIONS: options.absolute_positions}
    return not has_it.get(name, True)


def _adapt_channels(
    available: Flat, expected: Flat, source: ConfigDict, config: ConfigDict
) -> list[str]:
    """Adapts what depends on the number of channels, as `new_channels` says; returns a line."""
    how, old, new = config.get('new_channels'), source.dataset.channels, config.dataset.channels
    if how not in (None, *NEW_CHANNELS):
        raise UserError(f'new_channels={how!r}: choose {" or ".join(NEW_CHANNELS)}.')
    if how is None or old == new or PATCH_KERNEL not in available:
        return []
    available[PATCH_KERNEL] = adapt_channels(available[PATCH_KERNEL], old, new, how)
    for name in PREDICTION:
        predicted = available[name].shape[-1] if name in available else 0
        if name in expected and expected[name].shape[-1] * old == predicted * new:  # pixels
            available[name] = adapt_prediction(available[name], old, new, how)
    return [f'  patches of {old} channels adapted to {new} (new_channels={how})']


def _groups(names: Iterable[str], among: Iterable[str]) -> str:
    """Lists names by group: 'encoder', or 'encoder/norm' where `among` has more in 'encoder'."""
    names, others = set(names), set(among)
    others -= names

    def group(name: str) -> str:
        whole, part = (name.split('/')[0], '/'.join(name.split('/')[:2]))
        return part if any(other.startswith(f'{whole}/') for other in others) else whole

    return ', '.join(sorted({group(name) for name in names})) or 'nothing'


def _described(path: str, step: int | None) -> str:
    return path if step is None else f'{path}, step {step}'


def _shape(array: Any) -> tuple[int, ...] | str:
    return getattr(array, 'shape', 'missing')


def _flat(tree: Any) -> Flat:
    return traverse_util.flatten_dict(tree, sep='/')


def _replace(tree: Any, values: Flat) -> Any:
    """Replaces arrays of a tree by name, each laid out over the devices as the one before."""
    flat = _flat(tree)
    flat |= {n: put(v, flat[n].sharding) for n, v in values.items() if n in flat}
    return traverse_util.unflatten_dict(flat, sep='/')
