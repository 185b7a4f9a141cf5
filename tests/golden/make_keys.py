"""Makes the lists in keys/ from the models themselves.

    python tests/golden/make_keys.py

Needs torch, timm 1 and transformers 5 (made with torch 2.13, timm 1.0.31, transformers 5.23).
Where a library reads the format, it is made to read it: transformers every spelling of its names,
timm the two kinds of .npz.
"""

import tempfile
from pathlib import Path

import foreign_models as foreign
import keys
import numpy as np
import safetensors.torch
import timm
import torch
from foreign_models import SIZES, TINY
from transformers import logging
from transformers.core_model_loading import revert_weight_conversion

PARAMETERS = {'base': 111_907_840, 'large': 329_541_888, 'huge': 657_074_508}  # the official sizes


def write(name: str, comment: str, state: dict) -> None:
    """Writes a list, and sees that it reads as what it was made of."""
    shapes = {tensor: tuple(value.shape) for tensor, value in state.items()}
    lines = [f'# {comment}', *keys.compress(shapes)]
    (keys.FOLDER / f'{name}.txt').write_text('\n'.join(lines) + '\n')
    assert keys.read(name) == shapes, name
    print(f'{name}: {len(shapes)} tensors in {len(lines) - 1} lines')


def official() -> None:
    for name, parameters in PARAMETERS.items():
        state = foreign.Autoencoder(SIZES[name]).state_dict()
        assert sum(tensor.numel() for tensor in state.values()) == parameters
        write(f'official_full_{name}', f"['model'] of mae_pretrain_vit_{name}_full.pth", state)
    base = SIZES['base']
    encoder = foreign.vision_transformer(base)
    write('official_encoder_base', "['model'] of mae_pretrain_vit_base.pth", encoder.state_dict())
    tuned = foreign.vision_transformer(base, 1000, global_pool='avg')
    write('official_finetuned_base', "['model'], fine-tuned with mean pooling", tuned.state_dict())
    probe = foreign.linear_probe(base)
    write('official_probe_base', "['model'] of a linear probe", probe.state_dict())


def timm_family() -> None:
    for name, model in ('timm', 'vit_base_patch16_224'), ('deit', 'deit_base_patch16_224'):
        write(f'{name}_base', f'timm {model}', timm.create_model(model).state_dict())
    small = SIZES['small']
    # moco-v3's vits.py gives its vit_small 12 heads, not 6; names and shapes do not show it.
    moco = foreign.moco_v3(small._replace(heads=12)).state_dict()
    write('moco_v3_small', "['state_dict'] of MoCo v3's vit-s .pth.tar", moco)
    teacher = foreign.dino(small).state_dict()
    student = {f'module.{name}': tensor for name, tensor in teacher.items()}
    backbone = foreign.vision_transformer(small).state_dict()
    write('dino_small_backbone', 'DINO dino_deitsmall16_pretrain.pth, no wrapping key', backbone)
    write('dino_small_teacher', "['teacher'] of a full DINO checkpoint", teacher)
    write('dino_small_student', "['student'] of a full DINO checkpoint", student)


def beit() -> None:
    for name, shared in ('pretrained', True), ('finetuned', False):
        state = foreign.beit(SIZES['base'], shared).state_dict()
        state |= foreign.beit_buffers(SIZES['base'], shared)
        write(f'beit_{name}_base', f"['model'] of BEiT, {name}", state)
    for kind in 'classifier', 'pretrained', 'encoder':
        model = foreign.huggingface_beit(SIZES['base'], kind)
        for spelling in 'module', 'hub':
            comment = f'transformers {type(model).__name__}, {spelling} spelling'
            write(f'huggingface_beit-{kind}_{spelling}_base', comment, spelled(model, spelling))


def huggingface() -> None:
    for name in PARAMETERS:
        model = foreign.huggingface_mae(SIZES[name])
        for spelling in foreign.SPELLINGS:
            state = spelled(model, spelling)
            comment = f'transformers ViTMAEForPreTraining, {spelling} spelling'
            write(f'huggingface_mae_{spelling}_{name}', comment, state)
    for kind in 'classifier', 'encoder', 'pooler':
        model = foreign.huggingface_vit(SIZES['base'], kind)
        for spelling in 'module', 'hub':
            comment = f'transformers {type(model).__name__} ({kind}), {spelling} spelling'
            write(f'huggingface_{kind}_{spelling}_base', comment, spelled(model, spelling))


def spelled(model, spelling: str) -> dict:
    """The state dict under the names of a spelling, 'saved' being what save_pretrained writes."""
    state = foreign.respell(model.state_dict(), spelling)
    if spelling == 'saved':
        written = revert_weight_conversion(model, model.state_dict())
        assert written.keys() == state.keys(), written.keys() ^ state.keys()
    return state


def transformers_reads(model, spelling: str) -> None:
    """from_pretrained finds every tensor under these names, and no other."""
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        state = model.state_dict()
        model.save_pretrained(folder)
        file = Path(folder) / 'model.safetensors'
        safetensors.torch.save_file(foreign.respell(state, spelling), file, {'format': 'pt'})
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), (spelling, info)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def flax() -> None:
    base = SIZES['base']
    writers = {
        'augreg': (foreign.to_augreg, {}, 'vision_transformer (augreg) ViT-B/16 .npz'),
        'big_vision': (
            foreign.to_big_vision,
            {'no_embed_class': True},
            'big_vision ViT-B/16 .npz with a cls token',
        ),
    }
    for name, (writer, options, comment) in writers.items():
        shapes = foreign.vision_transformer(base, base.labels, **options).state_dict()
        state = keys.tensors({key: tuple(tensor.shape) for key, tensor in shapes.items()})
        arrays = writer(state, base.heads)
        timm_reads(foreign.vision_transformer(base, base.labels, **options), arrays, state)
        write(f'{name}_base', comment, arrays)


def timm_reads(model, arrays: dict, state: dict) -> None:
    """timm's own reader makes these tensors of these arrays, with none left over."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f'{folder}/vit.npz', **arrays)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        model.load_pretrained(f'{folder}/vit.npz')
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), state[name]), name
    assert sum(a.size for a in arrays.values()) == sum(a.size for a in state.values())


def main() -> None:
    logging.disable_progress_bar()
    keys.FOLDER.mkdir(exist_ok=True)
    with torch.device('meta'):
        official()
        timm_family()
        beit()
        huggingface()
    for spelling in foreign.SPELLINGS:
        transformers_reads(foreign.huggingface_mae(TINY), spelling)
    for kind in 'classifier', 'pooler':
        for spelling in 'module', 'hub':
            transformers_reads(foreign.huggingface_vit(TINY, kind), spelling)
    for kind in 'classifier', 'pretrained', 'encoder':
        for spelling in 'module', 'hub':
            transformers_reads(foreign.huggingface_beit(TINY, kind), spelling)
    flax()


if __name__ == '__main__':
    main()
