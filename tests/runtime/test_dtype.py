"""The dtype of activations that a machine gets for model.dtype='auto'."""

import jax
import pytest

from configs import default, quickstart
from mae_jax.config.model import make_encoder
from mae_jax.errors import UserError
from mae_jax.runtime import chips
from mae_jax.runtime.chips import choose_dtype


@pytest.mark.parametrize(
    ('platform', 'flags', 'dtype'),
    [
        ('tpu', '', 'bfloat16'),
        ('gpu', '', 'bfloat16'),
        ('cpu', '', 'float32'),  # macOS has no such file
        ('cpu', 'flags : fma avx512f avx512bw avx512_vnni', 'float32'),
        ('cpu', 'flags : avx512f avx512_bf16 avx512vbmi', 'bfloat16'),
        ('cpu', 'flags : amx_bf16 amx_tile', 'bfloat16'),
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_computes_in_float32(platform, flags, dtype):
    assert choose_dtype(platform, flags) == dtype


def test_auto_is_the_default_and_what_the_model_is_made_of(monkeypatch):
    assert default.get_config().model.dtype == 'auto'
    config = quickstart.get_config()
    for dtype in ('float32', 'bfloat16'):
        monkeypatch.setattr('mae_jax.config.model.choose_dtype', lambda platform, d=dtype: d)
        config.model.dtype = 'auto'
        assert make_encoder(config).dtype == jax.numpy.dtype(dtype)
    config.model.dtype = 'float16'
    with pytest.raises(UserError, match=r"model\.dtype='float16': choose 'auto', 'float32' or"):
        make_encoder(config)


def test_this_machine_has_one():
    assert chips.choose_dtype(jax.default_backend()) in ('float32', 'bfloat16')
