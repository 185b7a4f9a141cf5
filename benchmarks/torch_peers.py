"""Runs the same step in PyTorch: Hugging Face's ViTMAE to pretrain, timm's ViT to fine-tune.

The model and the batch are the same; AdamW uses PyTorch's fused kernel, Hugging Face's default. The
time of normalising images and mixing labels is not included. The libraries are optional, and
imported inside the functions.
"""

import importlib.util
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from measure import Contender, matmul_size

from mae_jax.runtime.cores import num_cores
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain

PEERS = {
    'eager': 'PyTorch eager, plain attention',
    'sdpa': 'PyTorch eager, SDPA',
    'compile': 'PyTorch compiled, SDPA',
}


def available(task: str) -> list[str]:
    """Lists the peers this machine can run; TorchInductor needs a C++ compiler, on GPUs Triton."""
    library = {'pretrain': 'transformers', 'finetune': 'timm'}[task]
    if not all(importlib.util.find_spec(name) for name in ('torch', library)):
        return []
    if device() == 'cuda':
        compiles = importlib.util.find_spec('triton') is not None
    else:
        compiles = any(map(shutil.which, ('g++', 'c++', 'clang++')))
    return [peer for peer in PEERS if compiles or peer != 'compile']


def device() -> str:
    """Returns the device of the peers: a GPU if JAX uses one too."""
    import torch

    on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
    return 'cuda' if on_gpu else 'cpu'


def matmul(dtype: str) -> Callable[[], None]:
    """Makes the function of `measure.matmul` in PyTorch."""
    import torch

    torch.set_num_threads(num_cores())
    size, products = matmul_size()
    a, b = (torch.randn(size, size) * scale for scale in (1, size**-0.5))
    a, b = (x.to(device(), getattr(torch, dtype)) for x in (a, b))

    def run() -> None:
        product = a
        for _ in range(products):
            product = product @ b
        if device() == 'cuda':
            torch.cuda.synchronize()

    return run


def peer(
    task: Pretrain | Classify, batch: dict[str, np.ndarray], name: str, recipe: dict, steps: int
) -> Contender:
    """Makes a peer of the task on one device, and runs its first step.

    Args:
      task: defines model, image size and dtype.
      batch: uint8 images [B, H, W, C]; for a classifier also int labels [B].
      name: a key of `PEERS`.
      recipe: arguments of the optimiser; `layer_decay` only for a classifier.
      steps: number of steps in a run.
    """
    import torch

    device_type = device()
    torch.set_num_threads(num_cores())
    if device_type == 'cuda':
        torch.set_float32_matmul_precision('high')  # TF32, as JAX's default
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    make = _timm if isinstance(task, Classify) else _hugging_face
    library, forward, optimizer = make(task, batch, name == 'eager', recipe, device_type)
    if name == 'compile':
        forward = torch.compile(forward, dynamic=False)
    dtype = np.dtype(task.model.dtype).name
    autocast = torch.autocast(device_type, torch.bfloat16, enabled=dtype == 'bfloat16')

    def run(steps: int = steps) -> float:
        for _ in range(steps):
            with autocast:
                loss = forward()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device_type == 'cuda':
            torch.cuda.synchronize()
        return loss.item()

    def timed() -> float:
        start = time.perf_counter()
        run(1)
        return time.perf_counter() - start

    first, second = timed(), timed()
    compile_s = first - second if name == 'compile' else None
    memory = None
    if device_type == 'cuda':
        memory = (torch.cuda.max_memory_allocated() - before) / 2**30
    return Contender(f'{library}, {PEERS[name]}', dtype, run, compile_s, memory)


def _hugging_face(
    task: Pretrain, batch: dict[str, np.ndarray], plain: bool, recipe: dict, device_type: str
) -> tuple[str, Callable[[], Any], Any]:
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = task.model
    config = ViTMAEConfig(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=4 * model.decoder_width,
        image_size=task.image_size[0],
        patch_size=model.patch_size,
        mask_ratio=model.masking.ratio,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
        attn_implementation='eager' if plain else 'sdpa',
    )
    module = ViTMAEForPreTraining(config).to(device_type).train()
    trained = [p for p in module.parameters() if p.requires_grad]
    decay = recipe['weight_decay']
    groups = [
        {'params': [p for p in trained if p.ndim > 1], 'weight_decay': decay},
        {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    options = dict(lr=recipe['peak'], betas=(recipe['b1'], recipe['b2']), eps=recipe['eps'])
    optimizer = torch.optim.AdamW(groups, fused=True, **options)
    pixels = torch.from_numpy(_pixels(task, batch['image'])).to(device_type)
    return 'Hugging Face', lambda: module(pixels).loss, optimizer


def _timm(
    task: Classify, batch: dict[str, np.ndarray], plain: bool, recipe: dict, device_type: str
) -> tuple[str, Callable[[], Any], Any]:
    import timm.layers
    import torch
    from timm.loss import SoftTargetCrossEntropy
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import create_optimizer_v2

    model = task.model
    timm.layers.set_fused_attn(not plain)  # read when a block is made
    module = VisionTransformer(
        img_size=task.image_size[0],
        patch_size=model.patch_size,
        num_classes=model.num_classes,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        global_pool='avg',
        drop_path_rate=model.drop_path,
    )
    module = module.to(device_type).train()
    optimizer = create_optimizer_v2(
        module,
        opt='adamw',
        lr=recipe['peak'],
        weight_decay=recipe['weight_decay'],
        layer_decay=recipe['layer_decay'],
        betas=(recipe['b1'], recipe['b2']),
        eps=recipe['eps'],
        fused=True,
    )
    one_hot = np.eye(model.num_classes, dtype=np.float32)[batch['label']]
    smooth = one_hot * (1 - task.label_smoothing) + task.label_smoothing / model.num_classes
    targets = torch.from_numpy((smooth + smooth[::-1]) / 2).to(device_type)
    pixels = torch.from_numpy(_pixels(task, batch['image'])).to(device_type)
    cross_entropy = SoftTargetCrossEntropy()
    return 'timm', lambda: cross_entropy(module(pixels), targets), optimizer


def _pixels(task: Pretrain | Classify, images: np.ndarray) -> np.ndarray:
    """Normalises images: uint8 [B, H, W, C] -> float32 [B, C, H, W]."""
    pixels = (images / task.scale - task.mean) / task.std
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
