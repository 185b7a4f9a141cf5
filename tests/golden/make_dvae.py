"""Makes dvae.npz with the published PyTorch module of DALL-E's encoder.

    python tests/golden/make_dvae.py

Needs torch and the module: pip install DALL-E (made with torch 2.13 and DALL-E 0.1). The rest is
NumPy alone, so that tests start from the same weights and images without storing them.
"""

from pathlib import Path

import numpy as np
from vitmae import normal

GOLDEN = Path(__file__).with_name('dvae.npz')
SMALL = dict(codes=512, width=64, blocks=2)
"""The least that the published module can be built with; its own has 8192, 256 and 2."""


def weights(codes: int, width: int, blocks: int) -> dict[str, np.ndarray]:
    """Every tensor, float32, by the names and in the shapes of the published module."""
    shapes = {'blocks.input': (width, 3, 7)}
    last = width
    for group in range(4):
        out = width * 2**group
        for i in range(blocks):
            name = f'blocks.group_{group + 1}.block_{i + 1}'
            if last != out:
                shapes[f'{name}.id_path'] = (out, last, 1)
            for conv, sizes in enumerate([(out // 4, last, 3), *[(out // 4, out // 4, 3)] * 2]):
                shapes[f'{name}.res_path.conv_{conv + 1}'] = sizes
            shapes[f'{name}.res_path.conv_4'] = (out, out // 4, 1)
            last = out
    shapes['blocks.output.conv'] = (codes, last, 1)
    tensors = {}
    for name, (out, into, size) in shapes.items():
        # A block's branch is multiplied by 1/64: twice the published deviation there lets it show.
        gain = 2 if 'res_path' in name else 1
        kernel = normal(f'{name}.w', (out, into, size, size)) * gain / (into * size**2) ** 0.5
        tensors[f'{name}.w'] = kernel.astype(np.float32)
        tensors[f'{name}.b'] = (0.1 * normal(f'{name}.b', (out,))).astype(np.float32)
    return tensors


def images(batch: int, height: int, width: int) -> np.ndarray:
    """float32 [B, H, W, 3] in [0, 1]."""
    pixels = np.random.RandomState(0).uniform(size=(batch, height, width, 3))
    return pixels.astype(np.float32)


def to_tree(tensors: dict[str, np.ndarray]) -> dict:
    """The nested parameters of `mae_jax.models.dvae.DVAE`."""
    tree = {}
    for name, tensor in tensors.items():
        parts = name.split('.')[1:-1]
        if parts[0].startswith('group'):
            layer = tree.setdefault(f'{parts[0]}_{parts[1]}', {}).setdefault(parts[-1], {})
        else:
            layer = tree.setdefault(parts[0], {})
        if tensor.ndim == 4:
            layer['kernel'] = np.moveaxis(tensor, (0, 1), (-1, -2))
        else:
            layer['bias'] = tensor
    return tree


def published(codes: int, width: int, blocks: int):
    """The published module with these weights."""
    import torch
    from dall_e import Encoder

    module = Encoder(n_hid=width, n_blk_per_group=blocks, vocab_size=codes)
    tensors = weights(codes, width, blocks)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    return module


def published_logits(module, images: np.ndarray) -> np.ndarray:
    """float32 [B, H/8, W/8, codes]."""
    import torch
    from dall_e import map_pixels

    with torch.no_grad():
        logits = module(map_pixels(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return logits.permute(0, 2, 3, 1).numpy()


def main() -> None:
    logits = published_logits(published(**SMALL), images(1, 16, 24))
    np.savez_compressed(GOLDEN, logits=logits)


if __name__ == '__main__':
    main()
