"""Checkpoints of other libraries as real files, each with what its own library makes of an image.

A function writes a file (or a directory) into a folder and returns (its path, an oracle). The
oracle takes float32 images [B,3,H,W], an autoencoder's also noise [B,N], and returns a dict of
arrays: 'tokens' [B,1+N,D] as they leave the encoder (after its final norm where it has one), and
'logits' [B,labels] of a classifier; of an autoencoder 'latent' [B,1+K,D], 'prediction'
[B,N,P*P*3], 'mask' bool [B,N] (True = hidden).

Every tensor is random, positions, mask token and running statistics too, and of the size a trained
one has. Needs torch, timm and transformers, so a test takes it so, and is skipped without:

    foreign = pytest.importorskip('helpers.foreign_checkpoints')
"""

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import foreign_models as models
import numpy as np
import safetensors.torch
import torch
import vitmae
from foreign_models import SIZES, TINY, Size
from torch import nn

BASE = SIZES['base']
Oracle = Callable[..., dict[str, np.ndarray]]


def inputs(size: Size = TINY, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [B,3,H,W] and noise float32 [B,N]."""
    images = vitmae.normal('images', (batch, 3, size.image_size, size.image_size))
    noise = np.random.RandomState(0).uniform(size=(batch, size.patches))
    return images.astype(np.float32), noise.astype(np.float32)


def official_full(folder: Path, size: Size = TINY, training: bool = False) -> tuple[Path, Oracle]:
    """Encoder and decoder: as released, or as training saves them, with all that lies beside."""
    model = randomise(models.Autoencoder(size))
    content = {'model': model.state_dict()}
    if training:
        content |= {
            'optimizer': _optimizer_state(model),
            'epoch': 3,
            'scaler': {'scale': 65536.0, 'growth_factor': 2.0, '_growth_tracker': 0},
            'args': Namespace(
                model='mae_vit_base_patch16',
                input_size=size.image_size,
                mask_ratio=0.75,
                norm_pix_loss=True,
                output_dir='./out',
                start_epoch=0,
                resume='',
                device='cuda',
            ),
        }
    path = folder / ('checkpoint-3.pth' if training else 'mae_pretrain_vit_full.pth')
    torch.save(content, path)

    def forward(images, noise):
        latent, prediction, mask = model(images, noise)
        return {'latent': latent, 'prediction': prediction, 'mask': mask}

    return path, _oracle(forward)


def official_encoder(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """The encoder alone, with its final norm."""
    model = randomise(models.vision_transformer(size))
    return _save(folder / 'mae_pretrain_vit.pth', {'model': model.state_dict()}), _of_timm(model)


def official_finetuned(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """A classifier with mean pooling: `fc_norm` after the mean, no `norm` before."""
    model = randomise(models.vision_transformer(size, size.labels, global_pool='avg'))
    return _save(folder / 'mae_finetuned_vit.pth', {'model': model.state_dict()}), _of_timm(model)


def official_probe(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """A linear probe: the head normalises with running statistics."""
    model = randomise(models.linear_probe(size))
    return _save(folder / 'mae_linprobe_vit.pth', {'model': model.state_dict()}), _of_timm(model)


def timm_vit(folder: Path, size: Size = TINY, suffix: str = '.safetensors') -> tuple[Path, Oracle]:
    """timm's classifier on the cls token, `.safetensors` as on the hub, or a bare `.pth`."""
    model = randomise(models.vision_transformer(size, size.labels))
    return _save(folder / f'vit{suffix}', model.state_dict()), _of_timm(model)


def deit(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """DeiT without distillation: a classifier on the cls token."""
    model = randomise(models.vision_transformer(size, size.labels))
    return _save(folder / 'deit_patch16.pth', {'model': model.state_dict()}), _of_timm(model)


def moco_v3(folder: Path, size: Size = TINY, heads: int = 12) -> tuple[Path, Oracle]:
    """MoCo v3, whose small and base ViT both have 12 heads. The oracle is the base encoder, which
    its linear evaluation takes."""
    size = size._replace(heads=heads)
    model = randomise(models.moco_v3(size, dim=16, hidden=32))
    content = {
        'epoch': 300,
        'arch': 'vit_small',
        'state_dict': model.state_dict(),
        'optimizer': _optimizer_state(model),
        'scaler': {'scale': 65536.0},
    }
    encoder = model['module']['base_encoder']
    return _save(folder / 'vit-s-300ep.pth.tar', content), _of_timm(encoder, head=False)


def dino_backbone(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """DINO's backbone as released: a state dict with nothing around it."""
    model = randomise(models.vision_transformer(size))
    return _save(folder / 'dino_pretrain.pth', model.state_dict()), _of_timm(model)


def dino_full(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """DINO's training checkpoint. The oracle is the teacher's backbone, which its evaluations take
    by default."""
    student = randomise(nn.ModuleDict({'module': models.dino(size, outputs=32, hidden=32)}))
    teacher = randomise(models.dino(size, outputs=32, hidden=32))
    content = {
        'student': student.state_dict(),
        'teacher': teacher.state_dict(),
        'optimizer': _optimizer_state(student),
        'epoch': 100,
        'args': Namespace(arch='vit_small', patch_size=size.patch_size, out_dim=32),
        'dino_loss': {'center': torch.zeros(1, 32)},
        'fp16_scaler': {'scale': 65536.0},
    }
    return _save(folder / 'dino_full_checkpoint.pth', content), _of_timm(teacher['backbone'])


def huggingface_mae(
    folder: Path, size: Size = TINY, spelling: str = 'saved', normalized: bool = True
) -> tuple[Path, Oracle]:
    """A directory of ViTMAEForPreTraining; the spellings are `foreign_models.SPELLINGS`.

    The oracle also gives 'loss'.
    """
    model = randomise(models.huggingface_mae(size, normalized))

    def forward(images, noise):
        out = model(images, noise=noise)
        latent = model.vit(images, noise=noise).last_hidden_state
        mask = out.mask.bool()
        return {'latent': latent, 'prediction': out.logits, 'mask': mask, 'loss': out.loss}

    return _save_huggingface(folder / 'vit-mae', model, spelling), _oracle(forward)


def huggingface_vit(
    folder: Path, size: Size = TINY, kind: str = 'classifier', spelling: str = 'hub'
) -> tuple[Path, Oracle]:
    """A directory of ViTForImageClassification ('classifier') or ViTModel ('encoder', 'pooler')."""
    model = randomise(models.huggingface_vit(size, kind))

    def forward(images):
        vit = model.vit if kind == 'classifier' else model
        outputs = {'tokens': vit(images).last_hidden_state}
        return outputs | ({'logits': model(images).logits} if kind == 'classifier' else {})

    return _save_huggingface(folder / f'vit-{kind}', model, spelling), _oracle(forward)


def beit(folder: Path, size: Size = TINY, shared: bool = False) -> tuple[Path, Oracle]:
    """BEiT's own `.pth`, fine-tuned, or pretrained: with one table for all blocks (`shared`)."""
    model = randomise(models.beit(size, shared))
    content = {'model': model.state_dict() | models.beit_buffers(size, shared)}
    return _save(folder / 'beit_patch16_pt22k.pth', content), _of_timm(model)


def huggingface_beit(
    folder: Path, size: Size = TINY, kind: str = 'classifier', spelling: str = 'hub'
) -> tuple[Path, Oracle]:
    """A directory of BeitForImageClassification ('classifier'), BeitForMaskedImageModeling
    ('pretrained', whose tokens are those before its last layer) or BeitModel ('encoder')."""
    model = randomise(models.huggingface_beit(size, kind))

    def forward(images):
        if kind == 'classifier':
            return {'logits': model(images).logits}
        if kind == 'encoder':
            return {'tokens': model(images).last_hidden_state}
        return {'tokens': model.layernorm(model.beit(images).last_hidden_state)}

    return _save_huggingface(folder / f'beit-{kind}', model, spelling), _oracle(forward)


def augreg(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """vision_transformer's .npz. The oracle is timm's model as timm reads this file; timm's GELU
    is exact, where the JAX models these come from take the tanh approximation."""
    return _flax(folder / 'B_16.npz', size, models.to_augreg)


def big_vision(folder: Path, size: Size = TINY) -> tuple[Path, Oracle]:
    """big_vision's .npz with a cls token, which has no position; otherwise as `augreg`."""
    return _flax(folder / 'big_vision.npz', size, models.to_big_vision, no_embed_class=True)


def _flax(path: Path, size: Size, writer: Callable, **options) -> tuple[Path, Oracle]:
    model = randomise(models.vision_transformer(size, size.labels, **options))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.savez(path, **writer(state, size.heads))
    reader = models.vision_transformer(size, size.labels, **options)
    reader.load_pretrained(str(path))
    return path, _of_timm(reader.eval())


def randomise(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, each of its tensors random by its name, none zero or one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    arrays = vitmae.tensors_of(shapes)
    for name in arrays:
        if name.endswith('running_var'):
            arrays[name] = 0.5 + abs(arrays[name])
        if name.endswith('num_batches_tracked'):
            arrays[name] = np.array(7)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model.eval()


def _oracle(forward: Callable) -> Oracle:
    def oracle(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = forward(*map(torch.from_numpy, arrays))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return oracle


def _of_timm(model: nn.Module, head: bool = True) -> Oracle:
    def forward(images):
        tokens = model.forward_features(images)
        if not head or isinstance(model.head, nn.Identity):
            return {'tokens': tokens}
        return {'tokens': tokens, 'logits': model.forward_head(tokens)}

    return _oracle(forward)


def _save(path: Path, content: dict) -> Path:
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(content, path, {'format': 'pt'})
    else:
        torch.save(content, path)
    return path


def _save_huggingface(folder: Path, model: nn.Module, spelling: str) -> Path:
    """Written by save_pretrained, and written again unless it uses the spelling itself."""
    model.save_pretrained(folder)
    file = folder / 'model.safetensors'
    names = models.respell(model.state_dict(), spelling)
    if names.keys() != safetensors.torch.load_file(file).keys():
        assert spelling != 'saved'
        _save(file, names)
    return folder


def _optimizer_state(model: nn.Module) -> dict:
    """AdamW's after a step that moves nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1 / math.e)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer.state_dict()
