"""The detector: Mask R-CNN on a plain vision transformer (ViTDet, arXiv 2203.16527)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32, Int, UInt8

from mae_jax.models.classifier import drop_path_scale
from mae_jax.models.detection import losses
from mae_jax.models.detection.anchors import grid_anchors
from mae_jax.models.detection.boxes import clip, decode
from mae_jax.models.detection.heads import BoxHead, MaskHead
from mae_jax.models.detection.nms import pick
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.proposals import (
    ProposalHead,
    Proposals,
    count_proposals,
    proposal_losses,
    propose,
)
from mae_jax.models.detection.pyramid import ROI_LEVELS, SCALES, FeaturePyramid, pyramid_grids
from mae_jax.models.detection.regions import (
    Regions,
    draw_regions,
    foreground_regions,
    mask_targets,
)
from mae_jax.models.detection.roi_align import multilevel_roi_align, roi_align_flops
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import Encoder


class Truth(NamedTuple):
    """What is in images, as of a training batch."""

    size: Int[ArrayLike, 'B 2']
    """Height and width that hold picture; the rest, below and to the right, is padding."""
    boxes: Float32[ArrayLike, 'B N 4']
    classes: Int[ArrayLike, 'B N']
    """-1: padding."""
    masks: UInt8[ArrayLike, 'B N M M']
    """0 or 1: each instance inside its own box."""


class Noise(NamedTuple):
    """What is random in training, uniform in [0, 1); `noise_shapes` has the shapes."""

    anchors: Float32[ArrayLike, 'B A']
    """By which anchors are drawn for the losses of proposals."""
    rois: Float32[ArrayLike, 'B R']
    """By which proposals are drawn for the losses of the heads."""
    path: Float32[ArrayLike, 'B L 2'] | None = None
    """By which branches of the L blocks are dropped, as of `drop_path_scale`."""


class Detections(NamedTuple):
    """By descending score; after the last of an image all is 0, and the class -1."""

    boxes: Float32[Array, 'B D 4']
    scores: Float32[Array, 'B D']
    classes: Int[Array, 'B D']
    masks: Float32[Array, 'B D m m']
    """Probabilities inside the box."""


class Detector(nn.Module):
    """Detects and masks objects.

    Parameters are {'encoder', 'pyramid', 'proposals', 'box_head', 'mask_head'}. Images are
    normalised, 0 where they are padded, and of the size of the encoder's positions.

    Attributes:
      drop_path: stochastic depth's rate of the encoder's last block.
    """

    encoder: Encoder
    num_classes: int
    options: DetectorOptions = DetectorOptions()
    drop_path: float = 0.0

    def setup(self):
        self.options.check()
        options, dtype = self.options, self.encoder.dtype
        self.pyramid = FeaturePyramid(options.channels, dtype)
        self.proposals = ProposalHead(options, dtype)
        self.box_head = BoxHead(self.num_classes, options, dtype)
        self.mask_head = MaskHead(self.num_classes, options, dtype)

    def __call__(
        self, images: Float[ArrayLike, 'B H W C'], size: Int[ArrayLike, 'B 2'] | None = None
    ) -> Detections:
        """Detects objects: `detect`, of images without padding if there is no `size`."""
        if size is None:
            size = jnp.broadcast_to(jnp.array(images.shape[1:3]), (len(images), 2))
        return self.detect(images, size)

    def detect(
        self, images: Float[ArrayLike, 'B H W C'], size: Int[ArrayLike, 'B 2']
    ) -> Detections:
        """Detects objects, by `apply({'params': params}, images, size, method='detect')`.

        Args:
          size: height and width that hold picture.
        """
        maps = self.maps(images)
        logits, deltas = self.proposals(maps)
        anchors = self.anchors(images.shape[1:3])
        proposals = propose(logits, deltas, anchors, size, self.options, train=False)
        return self._detect(maps, proposals, size)

    def losses(
        self, images: Float[ArrayLike, 'B H W C'], truth: Truth, noise: Noise
    ) -> dict[str, Float32[Array, '']]:
        """Computes {'objectness', 'proposal_box', 'class', 'box', 'mask'}, which are added up.

        By `apply({'params': params}, images, truth, noise, method='losses')`.
        """
        options = self.options
        maps = self.maps(images, noise.path)
        logits, deltas = self.proposals(maps)
        anchors = self.anchors(images.shape[1:3])
        computed = proposal_losses(
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(deltas, axis=1),
            np.concatenate(anchors),
            truth.boxes,
            jnp.asarray(truth.classes) >= 0,
            noise.anchors,
            options,
        )
        proposals = propose(logits, deltas, anchors, truth.size, options, train=True)
        regions = draw_regions(
            proposals, truth.boxes, truth.classes, noise.rois, options, self.num_classes
        )
        return computed | self._head_losses(maps, regions, truth)

    def maps(
        self,
        images: Float[ArrayLike, 'B H W C'],
        path_noise: Float32[ArrayLike, 'B L 2'] | None = None,
    ) -> list[Float[Array, 'B _h _w D']]:
        """Computes the pyramid's maps, from the tokens of patches before a final norm."""
        rows, columns = grid_size(images.shape[1:3], self.encoder.patch_size)
        scale = None
        if path_noise is not None and self.drop_path:
            scale = drop_path_scale(path_noise, self.drop_path)
        tokens = self.encoder(images, final_norm=False, branch_scale=scale)
        tokens = tokens[:, tokens.shape[1] - rows * columns :]  # without a cls token
        return self.pyramid(tokens.reshape(len(tokens), rows, columns, -1))

    def anchors(self, image_size: tuple[int, int]) -> list[Float32[np.ndarray, '_A 4']]:
        """Computes the anchors of each map."""
        options, grids = self.options, self._grids(image_size)
        return [
            grid_anchors(grid, self.encoder.patch_size / scale, size, options.anchor_ratios)
            for grid, scale, size in zip(grids, SCALES, options.anchor_sizes, strict=True)
        ]

    def noise_shapes(
        self, batch: int, image_size: tuple[int, int], boxes: int
    ) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of `Noise` by field, for images with so many boxes of the truth."""
        anchors = [len(x) for x in self.anchors(image_size)]
        proposals = count_proposals(anchors, self.options, train=True)
        shapes = {'anchors': (batch, sum(anchors)), 'rois': (batch, proposals + boxes)}
        path = {'path': (batch, self.encoder.depth, 2)} if self.drop_path else {}
        return shapes | path

    @nn.nowrap
    def flops(self, image_size: tuple[int, int]) -> float:
        """Counts the products after the encoder, in the forward pass of one image in training."""
        grids, options = self._grids(image_size), self.options
        width, dtype = options.channels, self.encoder.dtype
        patches = grid_size(image_size, self.encoder.patch_size)
        regions, masked = options.roi_samples, foreground_regions(options)
        heads = BoxHead(self.num_classes, options), MaskHead(self.num_classes, options)
        return sum((
            FeaturePyramid(width, dtype).flops(patches, self.encoder.width),
            ProposalHead(options).flops(grids),
            roi_align_flops(grids[:ROI_LEVELS], regions, options.box_size, width),
            roi_align_flops(grids[:ROI_LEVELS], masked, options.mask_size, width),
            heads[0].flops(regions),
            heads[1].flops(masked),
        ))  # fmt: skip

    @nn.nowrap
    def _grids(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        return pyramid_grids(grid_size(image_size, self.encoder.patch_size))

    def _cut(
        self,
        maps: Sequence[Float[Array, 'B _h _w D']],
        boxes: Float32[Array, 'B R 4'],
        size: int,
    ) -> Float[Array, 'B R {size} {size} D']:
        stride = self.encoder.patch_size / SCALES[0]
        return multilevel_roi_align(maps[:ROI_LEVELS], boxes, stride, size)

    def _head_losses(
        self, maps: Sequence[Float[Array, 'B _h _w D']], regions: Regions, truth: Truth
    ) -> dict[str, Float32[Array, '']]:
        """Computes {'class', 'box', 'mask'}."""
        cells = self._cut(maps, regions.boxes, self.options.box_size)
        logits, deltas = self.box_head(cells)
        masked = jax.tree.map(lambda x: x[:, : foreground_regions(self.options)], regions)
        masks = self.mask_head(self._cut(maps, masked.boxes, self.options.mask_size))
        size = masks.shape[2]
        target = mask_targets(truth.masks, truth.boxes, masked.matched, masked.boxes, size)
        foreground = masked.valid & (masked.label < self.num_classes)
        return {
            'class': losses.class_loss(logits, regions.label, regions.valid),
            'box': losses.box_loss(deltas, regions.deltas, regions.label, regions.valid),
            'mask': losses.mask_loss(masks, target, masked.label, foreground),
        }

    def _detect(
        self,
        maps: Sequence[Float[Array, 'B _h _w D']],
        proposals: Proposals,
        size: Int[ArrayLike, 'B 2'],
    ) -> Detections:
        """Classifies, refines, suppresses and masks."""
        options, K = self.options, self.num_classes
        logits, deltas = self.box_head(self._cut(maps, proposals.boxes, options.box_size))
        scores = jax.nn.softmax(logits)[..., :K]
        boxes = decode(deltas, proposals.boxes[:, :, None], options.box_weights)
        valid = jnp.isfinite(boxes).all(axis=-1) & (scores > options.score_threshold)
        valid &= proposals.valid[..., None]
        batch, count = scores.shape[:2]
        boxes, scores = clip(boxes.reshape(batch, -1, 4), size), scores.reshape(batch, -1)
        classes = jnp.tile(jnp.arange(K), count)[None]
        threshold, most = options.detection_nms, min(options.detections, count * K)
        index, valid = pick(boxes, scores, classes, valid.reshape(batch, -1), threshold, most)
        boxes = jnp.take_along_axis(boxes, index[..., None], axis=1)
        boxes = jnp.where(valid[..., None], boxes, 0)
        scores = jnp.where(valid, jnp.take_along_axis(scores, index, axis=1), 0)
        classes = jnp.where(valid, index % K, -1)
        masks = self.mask_head(self._cut(maps, boxes, options.mask_size))
        is_class = classes[..., None, None, None] == jnp.arange(K)
        masks = jax.nn.sigmoid(jnp.where(is_class, masks, 0).sum(axis=-1))
        masks = jnp.where(valid[..., None, None], masks, 0)
        return Detections(boxes, scores, classes, masks)
