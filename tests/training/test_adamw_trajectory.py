"""The optimiser against PyTorch's AdamW on Hugging Face's model: `tests/golden/make_vitmae.py`."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from mae_jax.models.mae import MAE

GOLDEN = Path(__file__).parents[1] / 'golden'
sys.path.insert(0, str(GOLDEN))
import vitmae  # noqa: E402


def make_optimizer(params) -> optax.GradientTransformation:
    """AdamW of the recipe, decay and frozen position tables included."""
    is_table = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'pos_embed', params)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, vitmae.TRAJECTORY_LR, vitmae.TRAJECTORY_WARMUP, vitmae.TRAJECTORY_STEPS
    )
    adamw = optax.adamw(
        schedule,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=vitmae.TRAJECTORY_WEIGHT_DECAY,
        mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    )
    labels = jax.tree.map(lambda table: 'frozen' if table else 'trained', is_table)
    return optax.multi_transform({'trained': adamw, 'frozen': optax.set_to_zero()}, labels)


def test_fifty_steps_follow_pytorch():
    case = vitmae.TRAJECTORY
    model = MAE(
        patch_size=case.patch_size,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        decoder_width=case.decoder_width,
        decoder_depth=case.decoder_depth,
        decoder_heads=case.decoder_heads,
        mask_ratio=case.mask_ratio,
    )
    start = vitmae.weights(case)
    params = vitmae.to_tree(case, start)
    optimizer = make_optimizer(params)

    @jax.jit
    def step(params, state, images, noise):
        def loss_of(params):
            return model.apply({'params': params}, images, noise=noise).loss

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for seed in range(vitmae.TRAJECTORY_STEPS):
        params, state, loss = step(params, state, *vitmae.inputs(case, seed))
        losses.append(loss)

    with np.load(GOLDEN / 'adamw.npz') as golden:
        np.testing.assert_allclose(losses, golden['loss'], rtol=1e-4)
        final = {k.removeprefix('final/'): golden[k] for k in golden if k.startswith('final/')}
    ours = vitmae.from_tree(case, params)
    for name, theirs in final.items():
        if name.endswith('k_proj.bias'):  # its gradient is zero but for rounding, which Adam scales
            continue
        difference = np.linalg.norm(ours[name] - theirs)
        assert difference < 1e-4 * np.linalg.norm(theirs), name
    for table in ours.keys() - final.keys():
        np.testing.assert_array_equal(ours[table], start[table])
