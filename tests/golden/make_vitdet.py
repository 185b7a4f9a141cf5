"""Makes vitdet.npz with transformers' VitDetBackbone, in float64.

    python tests/golden/make_vitdet.py

Needs torch and transformers (made with torch 2.13 and transformers 5.24).
"""

from pathlib import Path

import numpy as np
import torch
import vitdet
from transformers import VitDetBackbone, VitDetConfig

HERE = Path(__file__).parent


def build() -> VitDetBackbone:
    blocks = set(range(vitdet.DEPTH))
    config = VitDetConfig(
        hidden_size=vitdet.WIDTH,
        num_hidden_layers=vitdet.DEPTH,
        num_attention_heads=vitdet.HEADS,
        image_size=vitdet.GRID[0] * vitdet.PATCH_SIZE,
        pretrain_image_size=vitdet.PRETRAINED[0] * vitdet.PATCH_SIZE,
        patch_size=vitdet.PATCH_SIZE,
        window_size=vitdet.WINDOW,
        window_block_indices=sorted(blocks - set(vitdet.GLOBAL)),
        use_relative_position_embeddings=True,
        out_features=[f'stage{vitdet.DEPTH}'],
    )
    model = VitDetBackbone(config).double().eval()
    tensors = {k: torch.from_numpy(v).double() for k, v in vitdet.weights().items()}
    model.load_state_dict(tensors, strict=True)
    return model


def features(model: VitDetBackbone, case: str) -> np.ndarray:
    """float32 [B, rows, columns, D]."""
    images = torch.from_numpy(vitdet.images(case)).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        (maps,) = model(images).feature_maps
    return maps.permute(0, 2, 3, 1).float().numpy()


def main() -> None:
    model = build()
    golden = {case: features(model, case) for case in vitdet.GRIDS}
    np.savez_compressed(HERE / 'vitdet.npz', **golden)


if __name__ == '__main__':
    main()
