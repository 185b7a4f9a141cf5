"""Makes upernet.npz with transformers' UperNet over BEiT's backbone in PyTorch, in float64.

    python tests/golden/make_upernet.py

Needs torch and transformers 5 (made with torch 2.13 and transformers 5.23).
"""

import json
from pathlib import Path

import numpy as np
import torch
import upernet
from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

FILE = Path(__file__).with_name('upernet.npz')


def build(case: upernet.Case, dtype: torch.dtype = torch.float64) -> UperNetForSemanticSegmentation:
    """The model with our weights; the stem is the first of the backbone's stages."""
    backbone = BeitConfig(
        image_size=case.side,
        patch_size=case.patch_size,
        hidden_size=case.width,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.width,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        drop_path_rate=0.0,
        out_indices=[tap + 1 for tap in case.taps],
        add_fpn=True,
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=case.head_width,
        auxiliary_in_channels=case.width,
        auxiliary_channels=case.auxiliary_width,
        num_labels=case.classes,
    )
    model = UperNetForSemanticSegmentation(config).to(dtype).eval()
    tensors = upernet.weights(shapes_of(model))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    return model


def shapes_of(model: UperNetForSemanticSegmentation) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that has a counterpart in our model."""
    unused = (
        'num_batches_tracked',
        'relative_position_index',
        'layernorm.weight',
        'layernorm.bias',
    )
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith(unused)}


def channels_first(array: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(array).to(dtype).permute(0, 3, 1, 2)


def from_maps(
    model: UperNetForSemanticSegmentation, maps: list[np.ndarray], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of head and auxiliary head, enlarged, of what an encoder may return."""
    features = model.backbone.fpn(tuple(map(channels_first, maps)))
    heads = model.decode_head(features), model.auxiliary_head(features)
    return tuple(
        torch.nn.functional.interpolate(x, size=(size, size), mode='bilinear', align_corners=False)
        for x in heads
    )


def stored(logits: torch.Tensor) -> np.ndarray:
    """Channels last, every `STRIDE`th pixel."""
    array = logits.detach().permute(0, 2, 3, 1).numpy()
    return array[:, :: upernet.STRIDE, :: upernet.STRIDE].astype(np.float32)


def training(model: UperNetForSemanticSegmentation, case: upernet.Case) -> dict[str, np.ndarray]:
    """Loss, gradients and running statistics of one batch of maps."""
    model.train()
    labels = torch.from_numpy(upernet.labels(case))
    losses = [
        torch.nn.functional.cross_entropy(x, labels, ignore_index=upernet.IGNORED)
        for x in from_maps(model, upernet.maps(case), case.side)
    ]
    loss = losses[0] + model.config.auxiliary_loss_weight * losses[1]
    loss.backward()
    parameters = dict(model.named_parameters())
    golden = {f'gradient/{name}': parameters[name].grad for name in upernet.GRADIENTS}
    golden |= {f'after/{k}': v for k, v in model.state_dict().items() if 'running' in k}
    golden = {name: tensor.numpy().astype(np.float32) for name, tensor in golden.items()}
    return golden | {'maps/loss': loss.detach().numpy()}


def main() -> None:
    case = upernet.SMALL
    model = build(case)
    golden = {'shapes': np.array(json.dumps(shapes_of(model)))}
    with torch.no_grad():
        names = ('maps/head', 'maps/auxiliary')
        logits = from_maps(model, upernet.maps(case), case.side)
        golden |= {name: stored(x) for name, x in zip(names, logits, strict=True)}
        labels = torch.from_numpy(upernet.labels(case))
        output = model(channels_first(upernet.images(case)), labels=labels)
        golden |= {'logits': stored(output.logits), 'loss': output.loss.numpy()}
    np.savez_compressed(FILE, **golden | training(model, case))


if __name__ == '__main__':
    main()
