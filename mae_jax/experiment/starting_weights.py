"""`init_from`: the weights of another run, fitted to the model of this one."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath
from flax import traverse_util

from mae_jax.checkpoints.find import steps
from mae_jax.config.model import image_size, make_architecture
from mae_jax.errors import UserError
from mae_jax.interop.trained import COLLECTIONS, read_config, read_trained
from mae_jax.models.patches import grid_size
from mae_jax.models.positions import resize_positions

POSITIONS = 'encoder/pos_embed'
MODEL_FIELDS = ('variant', 'patch_size', 'width', 'depth', 'heads')
DATA = ('name', 'path')
STATISTICS = ('channels', 'scale', 'mean', 'std')
Flat = dict[str, Any]


def inherit(config: ml_collections.ConfigDict, workdir: str) -> ml_collections.ConfigDict:
    """A copy in which the unset fields of model and data are those of the run `init_from` is of.

    A model whose variant is given keeps its own sizes, and a data set that is named its own path.
    A run that has begun in `workdir` no longer needs the other: its own config has the fields.

    Raises:
      UserError: a field is unset and there is no run to take it from.
    """
    config = config.copy_and_resolve_references()
    begun = has_begun(workdir)
    if begun or config.init_from:
        source = read_config(workdir if begun else config.init_from)
        if config.model.variant is None:
            _fill(config.model, source.model, MODEL_FIELDS)
        _fill(config, source, ('image_size',))
        named = config.dataset.name is not None
        _fill(config.dataset, source.dataset, STATISTICS if named else STATISTICS + DATA)
        if not (named or begun):
            _check_data(config)
    needed = {'': ('image_size',), 'model': ('variant',), 'dataset': ('name', *STATISTICS)}
    unset = [
        f'{group}.{field}'.removeprefix('.')
        for group, fields in needed.items()
        for field in fields
        if (config[group] if group else config)[field] is None
    ]
    if unset:
        raise UserError(
            f'{", ".join(unset)} must be given, or taken from a pretrained model by '
            '--config.init_from=<its work directory>.'
        )
    return config


def has_begun(workdir: str) -> bool:
    """Whether a checkpoint is there; until then a start that failed may be mended and repeated."""
    directory = epath.Path(workdir)
    return (directory / 'config.json').exists() and bool(steps(directory / 'checkpoints'))


def _check_data(config: ml_collections.ConfigDict) -> None:
    """Refuses a data set that another's config names, where TFDS would fetch code to read it."""
    name, path = (config.dataset[field] for field in DATA)
    told = f'dataset.name={name!r}, dataset.path={path!r} of init_from={config.init_from}'
    if not isinstance(name, str | None) or not isinstance(path, str | None):
        raise UserError(f'{told} are no names: give dataset.name.')
    if re.match(r'[^:/]*:[^\d*]', name or ''):
        raise UserError(f'{told} is of a namespace, and its code would be run: give dataset.name.')


def _fill(group: ml_collections.ConfigDict, source: Mapping, fields: tuple[str, ...]) -> None:
    for field in fields:
        if group[field] is None:
            group[field] = source.get(field)


class Loaded(NamedTuple):
    """What a run starts from, when it starts from the weights of another."""

    params: Any
    model_state: Any
    report: list[str]
    """A line each: what was loaded, resized, left at its initial value, ignored."""
    initial: list[str]
    """Names of the parameters and running statistics left at their initial values."""
    step: int
    """Of the checkpoint that was read; 0 where it is not known."""


def load_weights(
    path: str,
    config: ml_collections.ConfigDict,
    params: Any,
    model_state: Any,
    *,
    required: Callable[[str], bool],
) -> Loaded:
    """Puts what another run has learned in the place of this one's initial values.

    The encoder's positions are resized where the number of patches differs (bicubic, as the
    original does). Further parameters are taken where name and shape agree.

    Args:
      path: a work directory, one of its checkpoints, or a file that `mae-jax convert` wrote.
      config: of the run that is about to start.
      params, model_state: its initial values, laid out over the devices.
      required: whether a parameter must be there on both sides, and of one shape.

    Raises:
      UserError: there is no checkpoint, or what it holds is of another architecture.
    """
    weights = read_trained(path)
    source = weights.config
    found, wanted = _flat(weights.params), _flat(params)
    resized = _resize_positions(found, wanted, source, config)
    _check_architecture(path, found, wanted, source, config, required)
    loaded = {n: v for n, v in found.items() if _shape(wanted.get(n)) == v.shape}
    initial = wanted.keys() - loaded.keys()
    statistics = _flat(weights.model_state)
    if any(name.startswith('head/') for name in initial):
        statistics = {}  # running statistics are of no use to another head
    # A tokenizer's weights are state too, but are read from their own file.
    running = {name for name in _flat(model_state) if name.split('/')[0] in COLLECTIONS}
    initial |= running - statistics.keys()
    report = [
        f'starting from {_described(path, weights.step)}; loaded: {_groups(loaded, wanted)}',
        *resized,
        f'  left at their initial values: {_groups(initial, wanted.keys() | initial)}',
        f'  ignored: {_groups(found.keys() - loaded.keys(), found)}',
    ]
    placed = _placed(loaded, params), _placed(statistics, model_state)
    return Loaded(*placed, report, sorted(initial), weights.step or 0)


def _check_architecture(
    path: str,
    found: Flat,
    wanted: Flat,
    source: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
    required: Callable[[str], bool],
) -> None:
    there, here = make_architecture(source.model), make_architecture(config.model)
    # Of a different number of heads no shape would tell.
    differing = [
        f'model.{field}: {there[field]} there, {here[field]} here'
        for field in here
        if there[field] != here[field]
    ]
    differing += [
        f'{name}: {_shape(found.get(name))} there, {_shape(wanted.get(name))} here'
        for name in sorted(found.keys() | wanted.keys())
        if required(name) and _shape(found.get(name)) != _shape(wanted.get(name))
    ]
    if differing and all(told.startswith('decoder/head/') for told in differing):
        raise UserError(
            f'init_from={path} predicts another target.name, or another number of '
            f'target.components or target.codes ({"; ".join(differing)}): give what it was '
            'trained with.'
        )
    if differing:
        shown = '; '.join(differing[:5]) + ('; ...' if len(differing) > 5 else '')
        raise UserError(
            f'init_from={path} holds another model ({shown}): give the model fields it was '
            'trained with, or leave them unset to take them from it.'
        )


def _resize_positions(
    found: Flat, wanted: Flat, source: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
    """Brings the positions in `found` to the grid of `wanted`, and says so."""
    old, new = (
        grid_size(image_size(c), make_architecture(c.model)['patch_size']) for c in (source, config)
    )
    if POSITIONS not in found or old == new:
        return []
    if found[POSITIONS].shape[-1] != wanted[POSITIONS].shape[-1]:
        return []  # another architecture, which is told elsewhere
    found[POSITIONS] = resize_positions(found[POSITIONS], old, new)
    return [f'  positions resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches']


def _groups(names: Iterable[str], among: Iterable[str]) -> str:
    """Names as 'encoder, head'; 'encoder/norm' where not all in 'encoder' of `among` is meant."""
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


def _placed(values: Flat, tree: Any) -> Any:
    """`tree` with these values in it, laid out as what they replace."""
    flat = _flat(tree)
    flat |= {n: jax.device_put(v, flat[n].sharding) for n, v in values.items() if n in flat}
    return traverse_util.unflatten_dict(flat, sep='/')
