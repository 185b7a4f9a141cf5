"""Reads and writes the ViTDet checkpoints of detectron2: Mask R-CNN on a plain ViT.

The table of names follows its public source: `ViT` and `SimpleFeaturePyramid` of
modeling/backbone/vit.py, `StandardRPNHead`, `FastRCNNConvFCHead`, `FastRCNNOutputLayers` and
`MaskRCNNConvUpsampleHead`, as projects/ViTDet combines them.

detectron2 keeps the positions of pretraining, 14 x 14 and one of a cls token, and enlarges them in
every step. Ours are enlarged once, when a file is read, to the size of its images; a file that is
written has these, which detectron2 takes with `pretrain_img_size` set to that of the images and
`pretrain_use_cls_token=False` of its `ViT`.
"""

import os
import re
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import detector_options, make_architecture
from mae_jax.errors import UserError
from mae_jax.files.paths import absolute
from mae_jax.files.pickles import read_pkl, write_pkl
from mae_jax.files.tensors import Tensors
from mae_jax.interop.detectors import detector_of
from mae_jax.interop.foreign import IMAGENET
from mae_jax.interop.modules import join_first
from mae_jax.interop.name_maps import official_block
from mae_jax.interop.rules import CONV, Layout, Rule, Sizes, linear, norm, rule
from mae_jax.interop.trained import Trained, flat, unflat
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.positions import resize_positions
from mae_jax.models.vit import VARIANTS

SUFFIX = '.pkl'
NET = 'backbone.net'
POSITIONS = f'{NET}.pos_embed'
CLASSES = 'roi_heads.box_predictor.cls_score.bias'
UNUSED = ('pixel_mean', 'pixel_std', 'proposal_generator.anchor_generator.cell_anchors')
"""Buffers of other releases, which follow from its config."""

SCALE = 255.0
DIGITS = 6
"""Decimals of mean and std, which the files have in float32, in units of 1/255."""

KERNEL = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x, sizes: (x.transpose(3, 2, 0, 1),))
"""[out, in, height, width] <-> [height, width, in, out]."""
POINT = Layout(lambda x: x[:, :, 0, 0].T, lambda x, sizes: (x.T[:, :, None, None],))
"""A convolution of one cell, [out, in, 1, 1] <-> a dense layer, [in, out]."""
DOUBLE = Layout(lambda x: x.transpose(0, 2, 3, 1), lambda x, sizes: (x.transpose(0, 3, 1, 2),))
"""A transposed convolution, [in, out, 2, 2] <-> [in, 2, 2, out]."""


def _cells(side: int) -> Layout:
    """Returns the layout of the first dense layer: [out, D*s*s] <-> [s*s*D, out]."""

    def to_ours(x: np.ndarray) -> np.ndarray:
        cells = x.reshape(len(x), -1, side, side)
        return cells.transpose(2, 3, 1, 0).reshape(-1, len(x))

    def to_theirs(x: np.ndarray, sizes: Sizes) -> tuple[np.ndarray]:
        cells = x.reshape(side, side, -1, x.shape[-1])
        return (cells.transpose(3, 2, 0, 1).reshape(x.shape[-1], -1),)

    return Layout(to_ours, to_theirs)


def _normed(ours: str, theirs: str) -> list[Rule]:
    kernel = rule(f'{ours}/conv/kernel', f'{theirs}.weight', KERNEL)
    return [kernel, *norm(f'{ours}/norm', f'{theirs}.norm')]


def _doubling(ours: str, theirs: str) -> list[Rule]:
    return linear(ours, theirs, DOUBLE)


def detectron2_rules(depth: int, options: DetectorOptions) -> list[Rule]:
    """Returns the rules of a detector whose encoder has so many blocks."""
    encoder = [
        rule('encoder/pos_embed', POSITIONS),
        *linear('encoder/patch_embed', f'{NET}.patch_embed.proj', CONV),
    ]
    for i in range(depth):
        ours, theirs = f'encoder/blocks/block_{i}', f'{NET}.blocks.{i}'
        encoder += official_block(ours, theirs)
        for leaf in ('rel_pos_h', 'rel_pos_w'):
            encoder.append(rule(f'{ours}/attention/{leaf}', f'{theirs}.attn.{leaf}'))
    simple = 'backbone.simfp_'
    pyramid = [
        *_doubling('pyramid/quadruple_1', f'{simple}2.0'),
        *norm('pyramid/quadruple_norm', f'{simple}2.1'),
        *_doubling('pyramid/quadruple_2', f'{simple}2.3'),
        *_doubling('pyramid/double', f'{simple}3.0'),
    ]
    # Place of the two convolutions among the layers of each map.
    for name, place in {'x4': '2.4', 'x2': '3.1', 'x1': '4.0', 'half': '5.1'}.items():
        stage, first = place.split('.')
        pyramid += _normed(f'pyramid/lateral_{name}', f'{simple}{stage}.{first}')
        pyramid += _normed(f'pyramid/output_{name}', f'{simple}{stage}.{int(first) + 1}')
    head = 'proposal_generator.rpn_head'
    proposals = [
        *linear('proposals/objectness', f'{head}.objectness_logits', POINT),
        *linear('proposals/deltas', f'{head}.anchor_deltas', POINT),
    ]
    for i in range(options.proposal_convolutions):
        # A single one is no list there.
        name = f'{head}.conv.conv{i}' if options.proposal_convolutions > 1 else f'{head}.conv'
        proposals += linear(f'proposals/conv_{i}', name, KERNEL)
    boxes = [
        *linear('box_head/dense', 'roi_heads.box_head.fc1', _cells(options.box_size)),
        *linear('box_head/classes', 'roi_heads.box_predictor.cls_score'),
        *linear('box_head/deltas', 'roi_heads.box_predictor.bbox_pred'),
    ]
    for i in range(options.box_convolutions):
        boxes += _normed(f'box_head/conv_{i}', f'roi_heads.box_head.conv{i + 1}')
    masks = [
        *_doubling('mask_head/double', 'roi_heads.mask_head.deconv'),
        *linear('mask_head/masks', 'roi_heads.mask_head.predictor', POINT),
    ]
    for i in range(options.mask_convolutions):
        masks += _normed(f'mask_head/conv_{i}', f'roi_heads.mask_head.mask_fcn{i + 1}')
    return [*encoder, *pyramid, *proposals, *boxes, *masks]


def is_detectron2(path: str | os.PathLike) -> bool:
    """Returns whether a path has the suffix of detectron2's checkpoints."""
    return os.fspath(path).lower().endswith(SUFFIX)


def read_detectron2(path: str | os.PathLike, say: Callable[[str], None]) -> Trained:
    """Reads a ViTDet checkpoint of detectron2, without running any of it.

    Args:
      path: a `.pkl` file.
      say: called with a line about what was left out.

    Raises:
      UserError: it is damaged, would run code, or is another model.
    """
    content = read_pkl(absolute(path))
    tensors = content.get('model', content)
    if not isinstance(tensors, dict) or CLASSES not in tensors:
        raise UserError(
            f"{path} is no Mask R-CNN of detectron2 on ViTDet's encoder: it has no {CLASSES}."
        )
    own = {
        name: np.asarray(x, np.float32)
        for name, x in tensors.items()
        if isinstance(x, np.ndarray) and x.dtype.kind == 'f' and not name.startswith(UNUSED)
    }
    try:
        config = _config(own)
        config.dataset.update(_statistics(tensors))
        trained = _to_ours(own, config)
        detector_of(trained)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except (ValueError, IndexError) as error:  # shapes that no detector has
        raise UserError(f'{path} is damaged: its tensors are not those of a model.') from error
    left_out = tensors.keys() - own.keys()
    if left_out := [name for name in sorted(left_out) if not name.startswith(UNUSED)]:
        say(f'left out, because the model does not contain it: {join_first(left_out)}')
    return trained


def _config(tensors: Tensors) -> ConfigDict:
    """Derives the config of a detector from the shapes of its tensors."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or not tensors[name].ndim:
            raise UserError(
                f"it is no Mask R-CNN of detectron2 on ViTDet's encoder: it has no {name}."
            )
        return tensors[name].shape

    def count(pattern: str) -> int:
        found = (re.fullmatch(pattern, name) for name in tensors)
        return max((int(match[1]) for match in found if match), default=-1) + 1

    width, channels, patch_size = shape(f'{NET}.patch_embed.proj.weight')[:3]
    depth = count(rf'{re.escape(NET)}\.blocks\.(\d{{1,4}})\.norm1\.weight')
    rows = [shape(f'{NET}.blocks.{i}.attn.rel_pos_h')[0] for i in range(depth)]
    head = shape(f'{NET}.blocks.0.attn.rel_pos_h')[1]
    sides = [(n + 1) // 2 for n in rows]
    grid, window = max(sides), min(sides) if min(sides) < max(sides) else 0
    named = [name for name, sizes in VARIANTS.items() if sizes['width'] == width]
    dense, pyramid = 'roi_heads.box_head.fc1.weight', 'backbone.simfp_2.4.weight'
    options = DetectorOptions()
    model = dict(
        variant=named[0] if named else 'vit_base',
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=width // head,
        dtype='float32',
        residual_dtype='float32',
        remat='none',
        scan=False,
        drop_path=0.0,
        relative_positions='vitdet',
        cls_token=False,
        absolute_positions=POSITIONS in tensors,
        window=window,
        global_blocks=tuple(i for i, side in enumerate(sides) if side == grid) if window else (),
        channels=shape(pyramid)[0],
        box_width=shape(dense)[0],
        box_convolutions=count(r'roi_heads\.box_head\.conv(\d{1,3})\.weight') - 1,
        mask_convolutions=count(r'roi_heads\.mask_head\.mask_fcn(\d{1,3})\.weight') - 1,
        proposal_convolutions=max(count(r'.*\.rpn_head\.conv\.conv(\d{1,3})\.weight'), 1),
        box_size=options.box_size,
    )
    dataset = dict(name=None, path=None, channels=channels, scale=SCALE, **IMAGENET)
    return ConfigDict({
        'task': 'detect',
        'init_from': None,
        'image_size': (grid * patch_size,) * 2,
        'num_classes': shape(CLASSES)[0] - 1,
        'model': model,
        'dataset': dataset,
    })  # fmt: skip


def _statistics(tensors: Tensors) -> dict[str, tuple[float, ...]]:
    """Returns mean and std, which are in the file, or else in detectron2's config: ImageNet's."""
    stated = {name: tensors[f'pixel_{name}'] for name in IMAGENET if f'pixel_{name}' in tensors}
    return {
        name: tuple(round(float(number) / SCALE, DIGITS) for number in np.ravel(numbers))
        for name, numbers in stated.items()
    }


def _to_ours(tensors: Tensors, config: ConfigDict) -> Trained:
    rules = detectron2_rules(config.model.depth, detector_options(config.model))
    known = {name for each in rules for name in each.theirs}
    if POSITIONS in tensors:
        table, side = tensors[POSITIONS], config.image_size[0] // config.model.patch_size
        patches = table.shape[1]
        first = patches - int(patches**0.5) ** 2  # the cls token's
        old = int((patches - first) ** 0.5)
        if first not in (0, 1):
            raise UserError(f'{POSITIONS} has {patches} rows, which no square of patches has.')
        resized = resize_positions(table[:, first:], (old, old), (side, side))
        tensors = tensors | {POSITIONS: resized}
    else:
        known.discard(POSITIONS)
    unknown, missing = sorted(tensors.keys() - known), sorted(known - tensors.keys())
    if unknown or missing:
        problems = [f'{name} is unknown' for name in unknown]
        problems += [f'{name} is missing' for name in missing]
        raise UserError(f'it is not a supported model (detectron2): {join_first(problems)}.')
    ours = {
        each.ours: each.layout.to_ours(*(tensors[name] for name in each.theirs))
        for each in rules
        if each.theirs[0] in known
    }
    return Trained(*unflat(ours), None, config)


def to_detectron2(trained: Trained) -> Tensors:
    """Converts a detector to the names and layouts of detectron2.

    Raises:
      UserError: it has what detectron2's ViTDet does not have.
    """
    config = trained.config
    sizes, options = make_architecture(config.model), detector_options(config.model)
    rules = {each.ours: each for each in detectron2_rules(sizes['depth'], options)}
    tensors = flat(trained)
    if unknown := sorted(tensors.keys() - rules.keys()):
        raise UserError(
            f"'detectron2' has no place for {join_first(unknown)}: convert to 'mae_jax'; a "
            'detector for it has model.relative_positions=vitdet and model.cls_token=False.'
        )
    converted = {}
    for name, array in tensors.items():
        each = rules[name]
        arrays = each.layout.to_theirs(
            np.asarray(array), Sizes(sizes['patch_size'], sizes['heads'])
        )
        converted |= {n: np.ascontiguousarray(x) for n, x in zip(each.theirs, arrays, strict=True)}
    return converted


def write_detectron2(path: str | os.PathLike, trained: Trained) -> None:
    """Writes a detector to a local `.pkl` file, which detectron2's checkpointer loads."""
    tensors, dataset = to_detectron2(trained), trained.config.dataset
    for name in IMAGENET:
        tensors[f'pixel_{name}'] = SCALE * np.array(dataset[name]).reshape(-1, 1, 1)
    write_pkl(path, {'model': tensors, '__author__': 'mae_jax'})
