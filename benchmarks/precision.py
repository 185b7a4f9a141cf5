"""Measures what bfloat16 costs in accuracy, beside Hugging Face's ViTMAE under PyTorch's autocast.

    python benchmarks/precision.py --variants vit_base vit_large

Both libraries compute one step of pretraining, with the same random weights, images and noise, in
float32 and in bfloat16. Their distance is ||b - a|| / ||a||, of the prediction and of the gradient
of all trained parameters. The two in float32 agree, which is checked. Needs torch and transformers.
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from measure import markdown, versions

from mae_jax.config.model import make_mae
from mae_jax.configs import default
from mae_jax.interop import huggingface
from mae_jax.interop.foreign import recognise
from mae_jax.interop.hyperparameters import hyperparameters
from mae_jax.interop.modules import Kind
from mae_jax.interop.name_maps import hub_name
from mae_jax.interop.trained import Trained
from mae_jax.interop.translate import to_ours, to_theirs

STREAMS = ('float32', 'bfloat16')
ATTENTION = ('sdpa', 'eager')
AGREEMENT = 1e-4
"""Largest distance of the two libraries in float32."""


class Step(NamedTuple):
    """The numbers of one step."""

    prediction: np.ndarray
    gradient: dict[str, np.ndarray]
    """By our names, without the position tables, which are not trained."""


def distance(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
    """Computes ||b - a|| / ||a||, each a list of arrays."""
    pairs = list(zip(a, b, strict=True))
    squares = [(np.sum((y - x) ** 2.0, dtype=float), np.sum(x**2.0, dtype=float)) for x, y in pairs]
    return float(np.sqrt(sum(s for s, _ in squares) / sum(s for _, s in squares)))


def distances(exact: Step, other: Step) -> tuple[float, float]:
    """Computes the distances of prediction and gradient."""
    names = sorted(exact.gradient)
    gradients = ([step.gradient[name] for name in names] for step in (exact, other))
    return distance([exact.prediction], [other.prediction]), distance(*gradients)


def make_config(variant: str, image_size: int, fields: dict[str, Any]) -> Any:
    """Makes the config of pretraining a variant; `fields` are of `config.model`."""
    config = default.get_config()
    config.image_size = (image_size, image_size)
    config.model.update(variant=variant, dtype='float32', attention='plain', scan=True, **fields)
    return config


def make_params(config: Any, seed: int) -> Any:
    """Draws weights as a run does, with biases and norms that are no longer 0 and 1."""
    rng = np.random.default_rng(seed)
    init = jax.jit(make_mae(config).init)
    images = np.zeros((1, *config.image_size, 3), np.float32)
    params = init({'params': jax.random.key(seed), 'mask': jax.random.key(seed)}, images)['params']

    def disturbed(path, value):
        spread = {'bias': 0.02, 'scale': 0.1}.get(path[-1].key)
        if spread is None:
            return np.asarray(value)
        return np.asarray(value + spread * rng.standard_normal(value.shape), np.float32)

    return jax.tree_util.tree_map_with_path(disturbed, params)


def run_ours(config: Any, params: Any, images: np.ndarray, noise: np.ndarray) -> Step:
    """Runs our step as the config computes it."""
    model = make_mae(config)

    def loss(params):
        output = model.apply({'params': params}, images, noise)
        return output.loss, output.prediction

    gradient, prediction = jax.jit(jax.grad(loss, has_aux=True))(params)
    return Step(np.asarray(prediction), _trained(gradient))


def run_theirs(
    trained: Trained, images: np.ndarray, noise: np.ndarray, attention: str
) -> Iterator[Step]:
    """Runs the step of Hugging Face's ViTMAE: first in float32, then under autocast."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    tensors = to_theirs(trained, 'huggingface')
    fields = huggingface.make_config(trained.config, Kind('mae'))
    module = ViTMAEForPreTraining(ViTMAEConfig(**fields, attn_implementation=attention))
    # A release of transformers names its modules anew; files keep the names of the hub.
    names = module.state_dict()
    module.load_state_dict({n: torch.from_numpy(tensors[hub_name(n)].copy()) for n in names})
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            output = module(pixels, noise=torch.from_numpy(noise))
        output.loss.backward()
        gradients = {
            name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy().copy()
            for name, p in module.named_parameters()
        }
        # The converter only renames, transposes and joins, and thus converts gradients too.
        foreign = recognise(gradients, hyperparameters(trained.config))
        yield Step(output.logits.detach().float().numpy(), _trained(to_ours(foreign, {}).params))


def _trained(gradient: Any) -> dict[str, np.ndarray]:
    gradients = traverse_util.flatten_dict(gradient, sep='/')
    return {n: np.asarray(g) for n, g in gradients.items() if not n.endswith('pos_embed')}


def compare(config: Any, batch_size: int, seed: int) -> dict[str, tuple[float, float]]:
    """Returns the distances in bfloat16 of each contender from the same in float32.

    Raises:
      ValueError: the two libraries differ in float32.
    """
    rng = np.random.default_rng(seed)
    height, width = config.image_size
    images = rng.standard_normal((batch_size, height, width, 3)).astype(np.float32)
    params = make_params(config, seed)
    patches = params['encoder']['pos_embed'].shape[1] - 1
    noise = rng.random((batch_size, patches), np.float32)
    exact = run_ours(config, params, images, noise)
    found = {}
    for stream in STREAMS:
        half = config.copy_and_resolve_references()
        half.model.update(dtype='bfloat16', residual_dtype=stream)
        found[f'ours, {stream} stream'] = distances(exact, run_ours(half, params, images, noise))
    for attention in ATTENTION:
        theirs, half = run_theirs(Trained(params, {}, None, config), images, noise, attention)
        if max(apart := distances(exact, theirs)) > AGREEMENT:
            raise ValueError(f'the libraries differ in float32, by {apart}')
        found[f'Hugging Face, {attention}'] = distances(theirs, half)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--variants', nargs='+', default=['vit_base', 'vit_large'])
    parser.add_argument('--batch_size', type=int, default=2)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    rows = []
    for variant in args.variants:
        config = make_config(variant, args.image_size, {})
        found = compare(config, args.batch_size, args.seed)
        least = np.min([v for name, v in found.items() if name.startswith('Hugging')], axis=0)
        for name, pair in found.items():
            ratios = np.array(pair) / least
            rows.append([variant, name, *(f'{x:.2e}' for x in pair), *(f'{r:.2f}' for r in ratios)])
    head = ['model', 'bfloat16', 'prediction', 'gradient', 'of the least of theirs', 'the same']
    notes = [versions(), f'{args.batch_size} images of {args.image_size} pixels, seed {args.seed}']
    print(markdown(notes, head, rows))


if __name__ == '__main__':
    main()
