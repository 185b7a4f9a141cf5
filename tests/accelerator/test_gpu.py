"""What only a GPU can show: `JAX_PLATFORMS=cuda,cpu python -m pytest -m accelerator`."""

import jax
import numpy as np
import pytest
from helpers.commands import make_tiny_config
from helpers.models import make_mae
from helpers.tiny_runs import flat

import mae_jax

pytestmark = pytest.mark.accelerator


def parameters(workdir, **fields) -> dict[str, np.ndarray]:
    """Runs the tiny config with these fields, and returns its parameters by name."""
    config = make_tiny_config()
    config.update_from_flattened_dict(fields)
    return flat(mae_jax.run(config, workdir).params)


def test_cudnn_attention_trains_as_the_plain_one_does(tmp_path):
    if jax.default_backend() != 'gpu':
        pytest.skip('cuDNN is a library of NVIDIA GPUs')
    fields = {'model.dtype': 'bfloat16', 'model.width': 64, 'num_steps': 4}
    runs = [
        parameters(tmp_path / attention, **fields, **{'model.attention': attention})
        for attention in ('plain', 'cudnn')
    ]
    for name, plain in runs[0].items():
        np.testing.assert_allclose(runs[1][name], plain, atol=2e-2, err_msg=name)


def test_the_model_computes_what_it_does_on_a_cpu():
    model = make_mae(patch_size=4, width=64, depth=2, heads=4, decoder_width=32, decoder_depth=1)
    images, key = np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jax.random.key(0)
    images = images.astype(np.float32)
    noise = np.random.default_rng(1).random((4, 16), np.float32)
    losses = []
    for device in (jax.devices()[0], jax.devices('cpu')[0]):
        with jax.default_device(device), jax.default_matmul_precision('highest'):
            params = jax.device_put(model.init(key, images, noise=noise), device)
            losses.append(float(jax.jit(model.apply)(params, images, noise=noise).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
