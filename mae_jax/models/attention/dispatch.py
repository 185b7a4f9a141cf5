"""Chooses how attention is computed: by platform, dtype and length, and whether it has a bias.

| 'auto' on | without a bias | with one (relative positions) |
|---|---|---|
| CPU | `cpu.py` | `cpu.py` |
| GPU, bfloat16 | cuDNN, up to the heads it takes, else plain | plain |
| GPU, float32 | plain | plain |
| TPU, up to 1,024 tokens | `tpu.py` | plain |
| TPU, more | plain | plain |
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from mae_jax.errors import UserError, brief
from mae_jax.models.attention.cpu import cpu_attention
from mae_jax.models.attention.gpu import HEAD_WIDTH, cudnn_attention
from mae_jax.models.attention.plain import plain_attention, split
from mae_jax.models.attention.tpu import MAX_TOKENS, tpu_attention
from mae_jax.models.platform import platform
from mae_jax.models.relative import Bias

ATTENTION = ('auto', 'plain', 'xla', 'cudnn', 'pallas')
"""How attention is computed: by the fastest of the others that works; by plain products; by
`jax.nn.dot_product_attention` with this implementation; or by this project's kernel for TPUs."""


def attend(
    qkv: Float[Array, 'B N E'],
    heads: int,
    implementation: str = 'auto',
    bias: Bias | None = None,
) -> tuple[Float[Array, 'B N D'], Float32[Array, 'B h N N'] | None]:
    """Computes multi-head self-attention, without its projections.

    The platform is that of the mesh which is set around the call, else JAX's default. Forward mode
    (`jax.jvp`) works for 'plain' and 'xla', and so does 'auto' on a CPU; the kernels have none.

    Args:
      qkv: q, k and v side by side in the last axis, each head by head.
      implementation: one of `ATTENTION`. 'cudnn' takes bfloat16 on a GPU, and 'pallas' at most
        1,024 tokens on a TPU; elsewhere 'plain' replaces them, so that a model trained with them
        can be used.
      bias: added to the logits, for relative positions. Neither 'xla', 'cudnn' nor 'pallas' takes
        one here: 'plain' replaces them, which holds the weights of all heads in memory.

    Returns:
      What attention mixes, and its weights; None for the weights where they are not computed.

    Raises:
      UserError: the implementation is unknown, or does not work on this device.
    """
    if implementation not in ATTENTION:
        raise UserError(
            f'model.attention={implementation!r} is unknown: use {" | ".join(ATTENTION)}.'
        )
    chosen = _choose(qkv, heads, implementation)
    if bias is not None and chosen != 'cpu':
        return plain_attention(qkv, heads, bias)
    if chosen == 'pallas':
        return tpu_attention(qkv, heads), None
    if chosen == 'cpu':
        return cpu_attention(qkv, heads, bias)
    if chosen == 'plain':
        return plain_attention(qkv, heads)
    try:
        if chosen == 'cudnn':
            return cudnn_attention(qkv, heads), None
        mixed = jax.nn.dot_product_attention(*split(qkv, heads), implementation=chosen)
    except (NotImplementedError, RuntimeError) as error:  # of this GPU, or for these heads
        if implementation == 'auto':
            return plain_attention(qkv, heads)
        raise UserError(
            f'model.attention={chosen!r} does not work on this device ({brief(error)}): use plain.'
        ) from error
    return mixed.reshape(*qkv.shape[:2], -1), None


def _choose(qkv: Array, heads: int, implementation: str) -> str:
    """Returns 'plain', 'cpu', 'xla', 'cudnn' or 'pallas'."""
    if implementation in ('plain', 'xla'):
        return implementation
    device, (batch, tokens, width) = platform(), qkv.shape
    if device == 'tpu' and implementation in ('auto', 'pallas'):
        return 'pallas' if tokens <= MAX_TOKENS and _is_split_evenly(batch) else 'plain'
    if device == 'gpu' and qkv.dtype == jnp.bfloat16 and implementation in ('auto', 'cudnn'):
        head_width = width // 3 // heads
        works = head_width % 8 == 0 and head_width <= HEAD_WIDTH
        return 'cudnn' if works or implementation == 'cudnn' else 'plain'
    return 'cpu' if device == 'cpu' and implementation == 'auto' else 'plain'


def _is_split_evenly(batch: int) -> bool:
    """Returns whether each device has rows of its own: only then a kernel may run on them."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 if mesh.empty else batch % mesh.size == 0
