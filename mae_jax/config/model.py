"""Reads `config.model` and what belongs to it: architecture, modules, image size, statistics."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.models.classifier import Classifier
from mae_jax.models.detection.detector import Detector
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.mae import MAE
from mae_jax.models.options import EncoderOptions
from mae_jax.models.patches import grid_size
from mae_jax.models.segmentation.linear import LinearHead
from mae_jax.models.segmentation.segmenter import HEADS, Segmenter, default_taps
from mae_jax.models.segmentation.upernet import LEVELS, FCNHead, UperHead
from mae_jax.models.transformer import NORM_EPS
from mae_jax.models.vit import Encoder, architecture
from mae_jax.pretext.masking import make_masking
from mae_jax.pretext.targets import make_target
from mae_jax.runtime.chips import choose_dtype

RESIDUAL_DTYPES = ('auto', 'float32', 'bfloat16')
OPTIONS = tuple(field.name for field in dataclasses.fields(EncoderOptions))
"""Fields of `config.model` that are `EncoderOptions`; pretraining has none of them."""


def image_size(config: ConfigDict) -> tuple[int, int]:
    """Returns (height, width) in pixels; one number in the config stands for a square."""
    size = tuple(config.image_size)
    whole = all(isinstance(side, int) for side in size)
    if len(size) not in (1, 2) or not whole or min(size) < 1:
        raise UserError(
            f'image_size={size} is no height and width in pixels: give e.g. (224, 224).'
        )
    return (size[0], size[-1])


def make_architecture(model: ConfigDict) -> dict[str, int]:
    """Returns {width, depth, heads, patch_size}: those of the variant where the config has none."""
    sizes = {name: model[name] for name in ('patch_size', 'width', 'depth', 'heads')}
    return architecture(model.variant, **sizes)


def probed_depth(block: int, depth: int) -> int:
    """Returns the number of blocks of an encoder of `depth` blocks up to `probe_block`.

    Raises:
      UserError: there is no such block.
    """
    if not -1 <= block < depth:
        raise UserError(
            f'probe_block={block} does not exist: the encoder has blocks 0 to {depth - 1}, and -1 '
            'stands for the last.'
        )
    return depth if block == -1 else block + 1


def make_mae(config: ConfigDict, predicted: int | None = None) -> MAE:
    """Makes the autoencoder; the config of a converted model may lack fields of a run.

    Args:
      config: of a run, or of a model that is loaded.
      predicted: for a model that is loaded, how many values it predicts for a patch. A mask
        strategy or target that the config gives as 'module:function' is then not imported.

    Raises:
      UserError: a field that does not work, by name.
    """
    model = config.model
    target = make_target(config.target, predicted)
    return MAE(
        masking=make_masking(
            config.mask.ratio,
            config.mask.strategy,
            may_hide_none=target.loss_on == 'all',
            may_import=predicted is None,
        ),
        target=target,
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        encoder_mask_tokens=model.get('encoder_mask_tokens', False),
        **_encoder(config),
    )


def make_encoder(config: ConfigDict) -> Encoder:
    """Makes the encoder."""
    return Encoder(**_encoder(config), options=encoder_options(config.model))


def make_classifier(config: ConfigDict, classes: int, frozen_blocks: int = 0) -> Classifier:
    """Makes the classifier."""
    model = config.model
    return Classifier(
        num_classes=classes,
        pool=model.pool,
        batch_norm=model.batch_norm,
        head_std=model.head_std,
        drop_path=model.drop_path,
        frozen_blocks=frozen_blocks,
        options=encoder_options(model),
        **_encoder(config),
    )


def make_segmenter(config: ConfigDict, classes: int, frozen_blocks: int = 0) -> Segmenter:
    """Makes the segmenter.

    Raises:
      UserError: a field does not work, such as a tapped block that the encoder does not have.
    """
    model, depth = config.model, make_architecture(config.model)['depth']
    if model.head not in HEADS:
        raise UserError(f'model.head={model.head!r} is unknown: use {" | ".join(HEADS)}.')
    taps = default_taps(depth, model.head) if model.taps is None else _taps(model.taps, depth)
    encoder = make_encoder(config).clone(frozen_blocks=frozen_blocks)
    linear = model.head == 'linear'
    if linear:
        head, auxiliary = LinearHead(classes, encoder.dtype), None
    else:
        head, auxiliary = _upernet(config, classes, encoder, taps)
    # As in the paper UperNet has no final norm; a probe sees what the encoder returns otherwise.
    options = dict(final_norm=linear, drop_path=model.drop_path)
    return Segmenter(encoder, head, auxiliary, taps, **options)


def _upernet(
    config: ConfigDict, classes: int, encoder: Encoder, taps: tuple[int, ...]
) -> tuple[UperHead, FCNHead | None]:
    """Makes UperNet, and the auxiliary head unless it has no weight."""
    model, grid = config.model, grid_size(image_size(config), encoder.patch_size)
    if len(taps) != LEVELS:
        raise UserError(f'model.taps={taps} must be {LEVELS} blocks for model.head=upernet.')
    if not 0 <= model.auxiliary_tap < LEVELS:
        tap = model.auxiliary_tap
        raise UserError(f'model.auxiliary_tap={tap} must be from 0 to {LEVELS - 1}.')
    if min(grid) < 2:
        raise UserError(
            f'image_size={image_size(config)} has {grid[0]} x {grid[1]} patches, which '
            'model.head=upernet cannot halve: give a larger image_size, or model.head=linear.'
        )
    options = dict(dropout=model.head_dropout, dtype=encoder.dtype)
    head = UperHead(classes, model.head_width or encoder.width, **options)
    auxiliary = FCNHead(classes, model.auxiliary_width, model.auxiliary_tap, **options)
    return head, auxiliary if model.auxiliary_weight else None


def make_detector(config: ConfigDict, classes: int, frozen_blocks: int = 0) -> Detector:
    """Makes the detector.

    Raises:
      UserError: a field does not work.
    """
    encoder = make_encoder(config).clone(frozen_blocks=frozen_blocks)
    options = detector_options(config.model)
    return Detector(encoder, classes, options, drop_path=config.model.drop_path)


def detector_options(model: ConfigDict) -> DetectorOptions:
    """Returns the numbers of the detector; what is unset is as in ViTDet's recipe."""
    given = {field.name: model.get(field.name) for field in dataclasses.fields(DetectorOptions)}
    return DetectorOptions(**{name: x for name, x in given.items() if x is not None})


def _taps(taps: Any, depth: int) -> tuple[int, ...]:
    """Reads `model.taps`, where -1 is the last block."""
    taps = (taps,) if isinstance(taps, int) else tuple(taps)
    for tap in taps:
        if type(tap) is not int or not -depth <= tap < depth:
            raise UserError(
                f'model.taps={taps}: the encoder has no block {tap}, it has blocks 0 to '
                f'{depth - 1}; leave model.taps unset to take them by its depth.'
            )
    return tuple(tap % depth for tap in taps)


def _encoder(config: ConfigDict) -> dict[str, Any]:
    """Returns those fields of `Encoder` that the modules of all tasks have."""
    model = config.model
    dtype = choose_dtype(jax.default_backend()) if model.dtype == 'auto' else model.dtype
    if dtype not in ('float32', 'bfloat16'):
        raise UserError(f"model.dtype='{dtype}': choose 'auto', 'float32' or 'bfloat16'.")
    options = dict(dtype=jnp.dtype(dtype), remat=model.remat, scan=model.scan)
    options['attention'] = model.get('attention', 'plain')  # not in the configs of earlier versions
    options['residual_dtype'] = jnp.dtype(residual_dtype(model))
    return make_architecture(model) | options | {'norm_eps': norm_eps(model)}


def encoder_options(model: ConfigDict) -> EncoderOptions:
    """Returns what the encoder has beside the original's; what is unset is as in that.

    Raises:
      UserError: a value is unknown, or contradicts another.
    """
    given = {name: model.get(name) for name in OPTIONS}
    options = EncoderOptions(**{name: x for name, x in given.items() if x is not None})
    options.check(make_architecture(model)['depth'])
    return options


def residual_dtype(model: ConfigDict) -> str:
    """Returns the dtype of the residual stream; that of earlier versions was bfloat16."""
    name = model.get('residual_dtype', 'bfloat16')
    if name not in RESIDUAL_DTYPES:
        raise UserError(f"model.residual_dtype='{name}': choose 'auto', 'float32' or 'bfloat16'.")
    return 'float32' if name == 'auto' else name


def describe_dtype(model: ConfigDict) -> str:
    """Returns the dtype of activations, and of the residual stream where it differs."""
    if model.dtype == 'float32' or residual_dtype(model) == model.dtype:
        return model.dtype
    return f'{model.dtype}, residual stream {residual_dtype(model)}'


def norm_eps(model: ConfigDict) -> float:
    """Returns what LayerNorm adds to the variance; configs of earlier versions lack the field."""
    eps = model.get('norm_eps')
    if eps is not None and not 0 < eps < 1:
        raise UserError(f'model.norm_eps={eps} must be above 0 and below 1, such as 1e-6.')
    return NORM_EPS if eps is None else float(eps)


def statistics(config: ConfigDict) -> dict[str, Any]:
    """Returns mean, std and scale, by which images are normalised.

    Raises:
      UserError: their number differs from `dataset.channels`.
    """
    dataset = config.dataset
    if not len(dataset.mean) == len(dataset.std) == dataset.channels:
        raise UserError(
            f'dataset.mean has {len(dataset.mean)} and dataset.std {len(dataset.std)} values, and '
            f'dataset.channels is {dataset.channels}: give one mean and one std a channel.'
        )
    return dict(mean=tuple(dataset.mean), std=tuple(dataset.std), scale=dataset.scale)
