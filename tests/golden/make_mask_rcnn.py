"""Makes mask_rcnn.npz with torchvision's operators, and PyTorch's layers of ViTDet's Mask R-CNN.

    python tests/golden/make_mask_rcnn.py

Needs torch, torchvision and transformers (made with torch 2.13, torchvision 0.28 and transformers
5.24). The encoder is transformers' VitDetBackbone.
"""

from pathlib import Path

import make_vitdet
import mask_rcnn
import numpy as np
import torch
import vitdet
from torch import nn
from torchvision import ops
from torchvision.models.detection import _utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.poolers import LevelMapper

FILE = Path(__file__).with_name('mask_rcnn.npz')
CHANNELS = mask_rcnn.CHANNELS


def roi_align(case: str) -> dict[str, np.ndarray]:
    """Cells of boxes, and the gradient of the map."""
    scale, size = mask_rcnn.ROI_CASES[case]
    x = channels_first(mask_rcnn.normal('roi map', mask_rcnn.MAP)).requires_grad_()
    boxes = list(torch.from_numpy(mask_rcnn.roi_boxes()).double())
    cells = ops.roi_align(x, boxes, (size, size), scale, sampling_ratio=2, aligned=True)
    output = cells.permute(0, 2, 3, 1)
    gradient = mask_rcnn.normal('roi gradient', tuple(output.shape))
    output.backward(torch.from_numpy(gradient))
    return {f'roi/{case}/cells': output.detach(), f'roi/{case}/gradient': x.grad}


def suppressed(threshold: float, groups: bool) -> torch.Tensor:
    boxes, scores, group = map(torch.from_numpy, mask_rcnn.crowded())
    if groups:
        return ops.batched_nms(boxes, scores, group, threshold)
    return ops.nms(boxes, scores, threshold)


def coded() -> dict[str, torch.Tensor]:
    boxes, references, deltas = map(torch.from_numpy, mask_rcnn.pairs())
    coder = _utils.BoxCoder(mask_rcnn.WEIGHTS)
    decoded = coder.decode_single(deltas, references)
    return {'encoded': coder.encode_single(boxes, references), 'decoded': decoded}


def matches() -> dict[str, torch.Tensor]:
    """Index of the box; -1 for background and -2 for neither."""
    overlaps = ops.box_iou(*map(torch.from_numpy, mask_rcnn.matched()))
    result = {'overlaps': overlaps}
    for low_quality in (False, True):
        matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)
        result[f'matched/{low_quality}'] = matcher(overlaps)
    return result


def anchors() -> dict[str, torch.Tensor]:
    """Of maps of an image of the size that gives the strides; their shapes are rounded."""
    result = {}
    for number, ((size, first), grid, stride) in enumerate(mask_rcnn.ANCHORS):
        generator = AnchorGenerator(((size,),), ((first, *mask_rcnn.RATIOS[1:]),))
        height, width = (side * stride for side in grid)
        images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        (result[f'anchors/{number}'],) = generator(images, [torch.zeros(1, 1, *grid)])
    return result


def build_layers() -> nn.Module:
    """Pyramid and heads with our weights; names are those of detectron2."""
    width, d = mask_rcnn.WIDTH, CHANNELS

    class ChannelNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Convolution(nn.Conv2d):
        def __init__(self, inputs: int, side: int, relu: bool) -> None:
            super().__init__(inputs, d, side, padding=side // 2, bias=False)
            self.norm, self.relu = ChannelNorm(d, eps=1e-6), relu

        def forward(self, x):
            x = self.norm(super().forward(x))
            return x.relu() if self.relu else x

    def level(inputs: int, *before: nn.Module) -> nn.Sequential:
        return nn.Sequential(*before, Convolution(inputs, 1, False), Convolution(d, 3, False))

    def deconvolution(inputs: int, outputs: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def named(**modules: nn.Module) -> nn.Module:
        return nn.ModuleDict(modules)

    half, quarter = width // 2, width // 4
    quadruple = deconvolution(width, half), ChannelNorm(half, eps=1e-6), nn.GELU()
    convolutions = [Convolution(d, 3, True) for _ in range(8)]
    return named(
        backbone=named(
            simfp_2=level(quarter, *quadruple, deconvolution(half, quarter)),
            simfp_3=level(half, deconvolution(width, half)),
            simfp_4=level(width),
            simfp_5=level(width, nn.MaxPool2d(2, 2)),
        ),
        proposal_generator=named(
            rpn_head=named(
                conv=named(**{f'conv{i}': nn.Conv2d(d, d, 3, padding=1) for i in range(2)}),
                objectness_logits=nn.Conv2d(d, mask_rcnn.SHAPES, 1),
                anchor_deltas=nn.Conv2d(d, 4 * mask_rcnn.SHAPES, 1),
            )
        ),
        roi_heads=named(
            box_head=named(
                **{f'conv{i + 1}': convolutions[i] for i in range(4)},
                fc1=nn.Linear(d * mask_rcnn.BOX_SIZE**2, mask_rcnn.DENSE),
            ),
            box_predictor=named(
                cls_score=nn.Linear(mask_rcnn.DENSE, mask_rcnn.CLASSES + 1),
                bbox_pred=nn.Linear(mask_rcnn.DENSE, 4 * mask_rcnn.CLASSES),
            ),
            mask_head=named(
                **{f'mask_fcn{i + 1}': convolutions[4 + i] for i in range(4)},
                deconv=deconvolution(d, d),
                predictor=nn.Conv2d(d, mask_rcnn.CLASSES, 1),
            ),
        ),
    )


def load(model: nn.Module) -> nn.Module:
    tensors = {k: torch.from_numpy(v) for k, v in mask_rcnn.weights().items()}
    model.load_state_dict(tensors, strict=True)
    return model.double()


def pyramid(model: nn.Module, case: str) -> dict[str, torch.Tensor]:
    """The five maps of images, by transformers' encoder."""
    features = make_vitdet.features(make_vitdet.build(), case)
    x = channels_first(features)
    maps = [model['backbone'][f'simfp_{level}'](x) for level in (2, 3, 4, 5)]
    maps.append(nn.functional.max_pool2d(maps[-1], 1, stride=2))
    return {f'pyramid/{case}/{i}': x.permute(0, 2, 3, 1) for i, x in enumerate(maps)}


def proposals(model: nn.Module) -> dict[str, torch.Tensor]:
    head = model['proposal_generator']['rpn_head']
    result = {}
    for number, x in enumerate(map(channels_first, mask_rcnn.maps())):
        x = head['conv']['conv1'](head['conv']['conv0'](x).relu()).relu()
        logits, deltas = head['objectness_logits'](x), head['anchor_deltas'](x)
        deltas = deltas.reshape(len(x), mask_rcnn.SHAPES, 4, *x.shape[2:])
        result[f'proposals/{number}/logits'] = logits.permute(0, 2, 3, 1).flatten(1)
        result[f'proposals/{number}/deltas'] = deltas.permute(0, 3, 4, 1, 2).flatten(1, 3)
    return result


def heads(model: nn.Module) -> dict[str, torch.Tensor]:
    box, mask = model['roi_heads']['box_head'], model['roi_heads']['mask_head']
    predictor = model['roi_heads']['box_predictor']
    x = channels_first(mask_rcnn.cells(mask_rcnn.BOX_SIZE).reshape(6, 3, 3, CHANNELS))
    for number in range(1, 5):
        x = box[f'conv{number}'](x)
    x = box['fc1'](x.flatten(1)).relu()
    result = {'classes': predictor['cls_score'](x), 'deltas': predictor['bbox_pred'](x)}
    x = channels_first(mask_rcnn.cells(mask_rcnn.MASK_SIZE).reshape(6, 4, 4, CHANNELS))
    for number in range(1, 5):
        x = mask[f'mask_fcn{number}'](x)
    masks = mask['predictor'](mask['deconv'](x).relu())
    return result | {'masks': masks.permute(0, 2, 3, 1)}


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float64)).permute(0, 3, 1, 2)


def operators() -> dict[str, torch.Tensor]:
    """What torchvision computes."""
    golden = {}
    for case in mask_rcnn.ROI_CASES:
        golden |= roi_align(case)
    for threshold in mask_rcnn.THRESHOLDS:
        golden |= {f'nms/{threshold}': suppressed(threshold, groups=False)}
        golden |= {f'batched/{threshold}': suppressed(threshold, groups=True)}
    boxes = [torch.from_numpy(mask_rcnn.level_boxes())]
    return golden | coded() | matches() | anchors() | {'levels': LevelMapper(2, 5)(boxes)}


def main() -> None:
    model = load(build_layers())
    golden = operators()
    with torch.no_grad():
        for case in vitdet.GRIDS:
            golden |= pyramid(model, case)
        golden |= proposals(model) | heads(model)
    arrays = {name: tensor.numpy() for name, tensor in golden.items()}
    floats = {name: x.astype(np.float32) for name, x in arrays.items() if x.dtype == np.float64}
    np.savez_compressed(FILE, **arrays | floats)


if __name__ == '__main__':
    main()
