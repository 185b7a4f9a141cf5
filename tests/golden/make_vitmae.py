"""Makes vitmae.npz, norm_eps.npz and adamw.npz with Hugging Face's ViTMAE in PyTorch, in float64.

    python tests/golden/make_vitmae.py

Needs torch and transformers 5 (made with torch 2.13 and transformers 5.23).
"""

import math
from pathlib import Path

import numpy as np
import torch
import vitmae
from transformers import ViTMAEConfig, ViTMAEForPreTraining

HERE = Path(__file__).parent
TABLES = ('vit.embeddings.position_embeddings', 'decoder.decoder_pos_embed')


def build(case: vitmae.Case) -> ViTMAEForPreTraining:
    """The model with our weights, taking rectangles, which its constructor refuses."""
    config = ViTMAEConfig(
        hidden_size=case.width,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.width,
        decoder_hidden_size=case.decoder_width,
        decoder_num_hidden_layers=case.decoder_depth,
        decoder_num_attention_heads=case.decoder_heads,
        decoder_intermediate_size=4 * case.decoder_width,
        image_size=4 * case.patch_size,  # any square: positions and checks are replaced below
        patch_size=case.patch_size,
        num_channels=case.channels,
        mask_ratio=case.mask_ratio,
        norm_pix_loss=case.normalized,
        layer_norm_eps=case.norm_eps,
        attn_implementation='sdpa',
    )
    model = ViTMAEForPreTraining(config).double()
    tensors = {k: torch.from_numpy(v).double() for k, v in vitmae.weights(case).items()}
    embeddings, decoder = model.vit.embeddings, model.decoder
    embeddings.position_embeddings = torch.nn.Parameter(tensors[TABLES[0]])
    decoder.decoder_pos_embed = torch.nn.Parameter(tensors[TABLES[1]])
    model.load_state_dict(tensors, strict=True)
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings
    decoder.interpolate_pos_encoding = lambda *_: decoder.decoder_pos_embed
    return model


def forward(model, case: vitmae.Case, seed: int = 0):
    images, noise = vitmae.inputs(case, seed)
    images = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    return model(images, noise=torch.from_numpy(noise), interpolate_pos_encoding=True)


def parity(case: vitmae.Case) -> dict[str, np.ndarray]:
    """Loss, prediction, mask and the gradient of every tensor, position tables too."""
    model = build(case)
    out = forward(model, case)
    out.loss.backward()
    golden = {'loss': out.loss, 'prediction': out.logits}
    golden |= {f'grad/{name}': p.grad for name, p in model.named_parameters()}
    golden = {k: v.detach().numpy().astype(np.float32) for k, v in golden.items()}
    return golden | {'mask': out.mask.numpy().astype(bool)}


def learning_rate(step: int) -> float:
    """Linear from 0, then half a cosine over the steps after the warm-up, to 0."""
    warmup, steps = vitmae.TRAJECTORY_WARMUP, vitmae.TRAJECTORY_STEPS
    if step < warmup:
        return vitmae.TRAJECTORY_LR * step / warmup
    done = (step - warmup) / (steps - warmup)
    return vitmae.TRAJECTORY_LR * 0.5 * (1 + math.cos(math.pi * done))


def trajectory(case: vitmae.Case) -> dict[str, np.ndarray]:
    """Loss and gradient norm of every step, and the last parameters, under PyTorch's AdamW."""
    model = build(case)
    named = dict(model.named_parameters())
    for table in TABLES:
        named.pop(table).requires_grad_(False)
    decayed = [p for name, p in named.items() if vitmae.decays(name)]
    spared = [p for name, p in named.items() if not vitmae.decays(name)]
    groups = [
        {'params': decayed, 'weight_decay': vitmae.TRAJECTORY_WEIGHT_DECAY},
        {'params': spared, 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(vitmae.TRAJECTORY_STEPS):
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(step)
        optimizer.zero_grad()
        loss = forward(model, case, seed=step).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(math.hypot(*(p.grad.norm().item() for p in named.values())))
        optimizer.step()
    golden = {name: p.detach().numpy().astype(np.float32) for name, p in named.items()}
    return {f'final/{k}': v for k, v in golden.items()} | {
        'loss': np.array(losses),
        'grad_norm': np.array(norms),
    }


def main() -> None:
    golden = {
        f'{name}/{key}': value
        for name, case in vitmae.CASES.items()
        for key, value in parity(case).items()
    }
    np.savez_compressed(HERE / 'vitmae.npz', **golden)
    of_eps = parity(vitmae.NORM_EPS)
    kept = {name: of_eps[name] for name in ('loss', 'prediction')}
    np.savez_compressed(HERE / 'norm_eps.npz', **kept)
    np.savez_compressed(HERE / 'adamw.npz', **trajectory(vitmae.TRAJECTORY))


if __name__ == '__main__':
    main()
