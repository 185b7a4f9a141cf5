"""Makes vit.npz with timm's VisionTransformer and PyTorch's BatchNorm1d, in float64.

    python tests/golden/make_vit.py

Needs torch and timm (made with torch 2.13 and timm 1.0.31).
"""

from pathlib import Path
from unittest import mock

import numpy as np
import torch
import vit
from timm.models.vision_transformer import VisionTransformer

HERE = Path(__file__).parent


def build(pool: str, tensors: dict[str, torch.Tensor], grid: int) -> VisionTransformer:
    model = VisionTransformer(
        img_size=grid * vit.PATCH_SIZE,
        patch_size=vit.PATCH_SIZE,
        num_classes=vit.CLASSES,
        embed_dim=vit.WIDTH,
        depth=vit.DEPTH,
        num_heads=vit.HEADS,
        global_pool='avg' if pool == 'mean' else 'token',
        fc_norm=pool == 'mean',
        drop_path_rate=vit.DROP_PATH,
    ).double()
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def resized(table: torch.Tensor) -> torch.Tensor:
    """Positions by PyTorch's bicubic, the cls token's kept, rounded to float32."""
    square = table[:, 1:].reshape(1, vit.GRID, vit.GRID, -1).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(
        square, size=2 * (vit.RESIZED_GRID,), mode='bicubic', align_corners=False
    )
    patches = square.permute(0, 2, 3, 1).reshape(1, vit.RESIZED_GRID**2, -1)
    return torch.cat([table[:, :1], patches], dim=1).float().double()


def logits(model: VisionTransformer, grid: int) -> np.ndarray:
    images = torch.from_numpy(vit.images(grid)).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(images).numpy()


def dropped_logits(model: VisionTransformer) -> np.ndarray:
    """In training mode, timm drawing its masks from our noise, a branch after the other."""
    noise = torch.from_numpy(vit.path_noise()).double()
    branches = iter(noise[:, 1:].flatten(1).unbind(1))  # timm draws nothing where the rate is 0

    def bernoulli(tensor, keep_prob):
        return tensor.copy_((next(branches) >= 1 - keep_prob).view_as(tensor))

    with mock.patch.object(torch.Tensor, 'bernoulli_', bernoulli):
        out = logits(model.train(), vit.GRID)
    assert next(branches, None) is None
    return out


def batch_norm() -> dict[str, np.ndarray]:
    """Output and running statistics after each batch, then the last batch in evaluation mode."""
    norm = torch.nn.BatchNorm1d(vit.WIDTH, affine=False, eps=1e-6).double()
    golden = {}
    for i, features in enumerate(vit.feature_batches()):
        features = torch.from_numpy(features).double()
        golden[f'batch_norm/{i}/output'] = norm(features).numpy()
        golden[f'batch_norm/{i}/mean'] = norm.running_mean.numpy().copy()
        golden[f'batch_norm/{i}/var'] = norm.running_var.numpy().copy()
    golden['batch_norm/evaluation'] = norm.eval()(features).numpy()
    return golden


def main() -> None:
    golden = batch_norm()
    for pool in ('mean', 'cls'):
        tensors = {k: torch.from_numpy(v).double() for k, v in vit.weights(pool).items()}
        model = build(pool, tensors, vit.GRID)
        golden[f'{pool}/{vit.GRID}'] = logits(model, vit.GRID)
        golden[f'{pool}/dropped'] = dropped_logits(model)
        table = resized(tensors['pos_embed'])
        model = build(pool, tensors | {'pos_embed': table}, vit.RESIZED_GRID)
        golden[f'{pool}/{vit.RESIZED_GRID}'] = logits(model, vit.RESIZED_GRID)
    golden['pos_embed'] = table.numpy()
    golden = {name: array.astype(np.float32) for name, array in golden.items()}
    np.savez_compressed(HERE / 'vit.npz', **golden)


if __name__ == '__main__':
    main()
