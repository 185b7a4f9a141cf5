"""Makes optimizers.npz with PyTorch, in float64.

    python tests/golden/make_optimizers.py

Needs torch (made with 2.13). In the file:

    adamw/NAME, lars/NAME, lars_decay/NAME    [steps, *shape] the parameter after every step
    positions/CASE/table, positions/CASE/resized
                                              [1, 1 + N, D] before and after F.interpolate
"""

import math
from pathlib import Path

import numpy as np
import optimizers
import torch

HERE = Path(__file__).parent
GRIDS = {'square': ((14, 14), (18, 18)), 'rectangle': ((7, 5), (3, 9))}


def rate(step: int, peak: float, minimum: float) -> float:
    """The rate of a step that is `epoch` epochs into the run: warm-up, then half a cosine."""
    epoch = step / optimizers.STEPS_PER_EPOCH
    if epoch < optimizers.WARMUP_EPOCHS:
        return peak * epoch / optimizers.WARMUP_EPOCHS
    done = (epoch - optimizers.WARMUP_EPOCHS) / (optimizers.EPOCHS - optimizers.WARMUP_EPOCHS)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).double() for name, array in arrays.items()}


def stacked(history: list[dict[str, torch.Tensor]], prefix: str) -> dict[str, np.ndarray]:
    return {
        f'{prefix}/{name}': np.stack([params[name].numpy() for params in history]).astype('f4')
        for name in history[0]
    }


def adamw() -> dict[str, np.ndarray]:
    """torch.optim.AdamW with the learning rate and the decay of each parameter in its own group."""
    scale = {
        'encoder/cls_token': 0.65**3,
        'encoder/pos_embed': 0.65**3,
        'encoder/patch_embed': 0.65**3,
        'encoder/blocks/block_0': 0.65**2,
        'encoder/blocks/block_1': 0.65,
        'fc_norm': 1.0,
        'head': 1.0,
    }
    params = tensors(optimizers.start(optimizers.CLASSIFIER))
    groups = []
    for name, p in params.items():
        (its_scale,) = [s for prefix, s in scale.items() if name.startswith(prefix)]
        spared = name.endswith(('bias', 'scale', 'cls_token', 'pos_embed'))
        decay = 0.0 if spared else optimizers.ADAMW['weight_decay']
        groups.append(dict(params=[p], weight_decay=decay, scale=its_scale))
    betas = optimizers.ADAMW['b1'], optimizers.ADAMW['b2']
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=optimizers.ADAMW['eps'])
    history = []
    for step in range(optimizers.STEPS):
        for group in optimizer.param_groups:
            lr = rate(step, optimizers.ADAMW_LR, optimizers.ADAMW_MIN_LR)
            group['lr'] = lr * group['scale']
        for name, gradient in tensors(optimizers.gradients(optimizers.CLASSIFIER, step)).items():
            params[name].grad = gradient
        optimizer.step()
        history.append({name: p.clone() for name, p in params.items()})
    return stacked(history, 'adamw')


def lars(case: str, weight_decay: float) -> dict[str, np.ndarray]:
    """LARS written out: trust ratio and decay where there are matrices, the rate comes last."""
    params = tensors(optimizers.start(optimizers.PROBE))
    buffers = {name: torch.zeros_like(p) for name, p in params.items()}
    history = []
    for step in range(optimizers.STEPS):
        lr = rate(step, optimizers.LARS_LR, 0.0)
        for name, d in tensors(optimizers.gradients(optimizers.PROBE, step)).items():
            p = params[name]
            if p.ndim > 1:
                d = d + weight_decay * p
                if p.norm() > 0 and d.norm() > 0:
                    d = d * (optimizers.TRUST * p.norm() / d.norm())
            buffers[name] = optimizers.MOMENTUM * buffers[name] + d
            params[name] = p - lr * buffers[name]
        history.append(dict(params))
    return stacked(history, case)


def positions(case: str) -> dict[str, np.ndarray]:
    """A random table, and its patch rows interpolated as an image."""
    old, new = GRIDS[case]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 1 + old[0] * old[1], 2, generator=generator)
    patches = table[:, 1:].double().reshape(1, *old, 2).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        patches, size=new, mode='bicubic', align_corners=False
    )
    resized = resized.permute(0, 2, 3, 1).reshape(1, -1, 2).float()
    resized = torch.cat([table[:, :1], resized], dim=1)
    return {
        f'positions/{case}/table': table.numpy(),
        f'positions/{case}/resized': resized.numpy(),
    }


if __name__ == '__main__':
    golden = adamw()
    for case, weight_decay in optimizers.LARS.items():
        golden |= lars(case, weight_decay)
    for case in GRIDS:
        golden |= positions(case)
    np.savez_compressed(HERE / 'optimizers.npz', **golden)
