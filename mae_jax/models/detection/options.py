"""The numbers of the detector: anchors, thresholds, samples, widths."""

import dataclasses

from mae_jax.errors import UserError

LEVELS = 5
"""Number of maps with anchors."""
MAY_BE_ZERO = ('proposal_convolutions', 'box_convolutions', 'mask_convolutions')


@dataclasses.dataclass(frozen=True)
class DetectorOptions:
    """Numbers of Mask R-CNN; by default those of ViTDet's recipe (arXiv 2203.16527, detectron2).

    Attributes:
      channels: of the pyramid's maps and of the convolutions on them.
      anchor_sizes: side in pixels of the square of an anchor's area, one for each of the five maps.
      anchor_ratios: height to width of anchors.
      proposal_convolutions: before the objectness of anchors.
      anchor_thresholds: anchors whose IoU with every box is below the first are background, those
        that reach the second with one are positive.
      anchor_samples: anchors of an image in the loss.
      anchor_positives: largest share of positive ones among them.
      before_nms, before_nms_train: proposals of each map before NMS, in evaluation and training.
      after_nms: proposals of an image after it.
      proposal_nms: IoU above which a proposal suppresses another.
      roi_threshold: IoU with a box from which a proposal is foreground.
      roi_samples: proposals of an image in the losses.
      roi_positives: largest share of foreground among them.
      box_size, mask_size: sides of the cells that RoIAlign cuts for boxes and for masks.
      box_convolutions, mask_convolutions: of the heads.
      box_width: of the box head's dense layer.
      box_weights: by which targets of the box head are multiplied: x, y, width, height.
      score_threshold: detections have scores above it.
      detection_nms: IoU above which a detection suppresses another of its class.
      detections: of an image, at most.
    """

    channels: int = 256
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposal_convolutions: int = 2
    anchor_thresholds: tuple[float, float] = (0.3, 0.7)
    anchor_samples: int = 256
    anchor_positives: float = 0.5
    before_nms: int = 1000
    before_nms_train: int = 2000
    after_nms: int = 1000
    proposal_nms: float = 0.7
    roi_threshold: float = 0.5
    roi_samples: int = 512
    roi_positives: float = 0.25
    box_size: int = 7
    mask_size: int = 14
    box_convolutions: int = 4
    mask_convolutions: int = 4
    box_width: int = 1024
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = 0.05
    detection_nms: float = 0.5
    detections: int = 100

    def check(self) -> None:
        """Raises a UserError for a value that does not work."""
        if len(self.anchor_sizes) != LEVELS or min(self.anchor_sizes) <= 0:
            raise UserError(
                f'model.anchor_sizes={self.anchor_sizes} must be {LEVELS} sizes in pixels, one for '
                'each map.'
            )
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise UserError(
                f'model.anchor_ratios={self.anchor_ratios} must be ratios of height to width, such '
                'as (0.5, 1.0, 2.0).'
            )
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int) and value < (name not in MAY_BE_ZERO):
                raise UserError(f'model.{name}={value} must be at least 1.')
            if isinstance(value, float) and not 0 <= value <= 1:
                raise UserError(f'model.{name}={value} must be from 0 to 1.')
        low, high = self.anchor_thresholds
        if not 0 <= low <= high <= 1:
            raise UserError(
                f'model.anchor_thresholds={self.anchor_thresholds} must be two, from 0 to 1, the '
                'lower one first.'
            )
        if self.roi_samples * self.roi_positives < 1:
            raise UserError(
                f'model.roi_samples={self.roi_samples} times model.roi_positives='
                f'{self.roi_positives} must be at least 1, the foreground of an image.'
            )
        if min(self.box_weights) <= 0:
            raise UserError(f'model.box_weights={self.box_weights} must be above 0.')
