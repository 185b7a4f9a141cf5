"""Makes beit.npz with timm's Beit, in float64: logits of classifiers, tokens of an encoder.

    python tests/golden/make_beit.py

Needs torch and timm (made with torch 2.13 and timm 1.0.31).
"""

from functools import partial
from pathlib import Path

import beit
import numpy as np
import torch
from timm.models import Beit

HERE = Path(__file__).parent


def build(case: beit.Case) -> Beit:
    model = Beit(
        img_size=case.image_size,
        patch_size=beit.PATCH_SIZE,
        num_classes=0 if case.shared else beit.CLASSES,
        embed_dim=beit.WIDTH,
        depth=beit.DEPTH,
        num_heads=beit.HEADS,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not case.shared,
        use_shared_rel_pos_bias=case.shared,
        use_fc_norm=not case.shared,
    ).double()
    tensors = {k: torch.from_numpy(v).double() for k, v in beit.weights(case).items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def outputs(case: beit.Case) -> np.ndarray:
    """float32 [B, classes], or [B, 1 + N, D] of an encoder."""
    model, images = build(case), torch.from_numpy(beit.images(case)).double()
    run = model.forward_features if case.shared else model
    with torch.no_grad():
        return run(images.permute(0, 3, 1, 2)).float().numpy()


def main() -> None:
    golden = {name: outputs(case) for name, case in beit.CASES.items()}
    np.savez_compressed(HERE / 'beit.npz', **golden)


if __name__ == '__main__':
    main()
