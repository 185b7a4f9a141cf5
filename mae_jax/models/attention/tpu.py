"""Attention by the TPU's kernels as one differentiable operation, on each device's own rows.

XLA cannot see into a kernel and would gather its inputs on every device. The operation therefore
has a rule for the partitioner: rows stay where they are, and every other axis is whole.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mae_jax.models.attention import tpu_kernels
from mae_jax.models.attention.plain import plain_attention

MAX_TOKENS = 1024
"""Longest sequence whose weights fit into a chip's vector memory, with what else is there."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def tpu_attention(qkv: Float[Array, 'B N E'], heads: int) -> Float[Array, 'B N D']:
    """Computes attention by a Pallas kernel on a TPU, by plain products elsewhere.

    Its weights are computed again in the backward pass, whatever is rematerialised. It has no
    forward mode (`jax.jvp`), which `plain_attention` has.

    Args:
      qkv: of at most `MAX_TOKENS` tokens; q, k and v side by side, each head by head.
    """
    return _forward(qkv, heads)


def _plain_forward(qkv: Array, *, heads: int) -> Array:
    return plain_attention(qkv, heads)[0]


def _plain_backward(qkv: Array, gradient: Array, *, heads: int) -> Array:
    return jax.vjp(partial(_plain_forward, heads=heads), qkv)[1](gradient)[0]


def _on_each_device(rule: str, kernel: Callable, plain: Callable) -> Callable[..., Array]:
    """Makes a function of arrays [B, ...] and of the number of heads.

    Args:
      rule: the axes of its arguments and of its result, in Shardy's notation; the first is `b`.
      plain: equals `kernel`, on other platforms.
    """

    def compute(*args):
        *arrays, heads = args
        return jax.lax.platform_dependent(
            *arrays,
            tpu=partial(kernel, heads=heads, interpret=False),
            default=partial(plain, heads=heads),
        )

    def partition(heads, mesh, arguments, result):
        rows = PartitionSpec(*arguments[0].sharding.spec[:1])
        layout = NamedSharding(mesh, rows)
        return mesh, lambda *arrays: compute(*arrays, heads), layout, (layout,) * len(arguments)

    function = custom_partitioning(compute, static_argnums=(rule.count(',') + 1,))
    function.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda heads, mesh, arguments, result: NamedSharding(
            mesh, PartitionSpec(*arguments[0].sharding.spec[:1])
        ),
        sharding_rule=rule,
        need_replication_factors=('n', 'e', 'd'),
    )
    return function


_forward = _on_each_device('b n e -> b n d', tpu_kernels.forward, _plain_forward)
_backward = _on_each_device('b n e, b n d -> b n e', tpu_kernels.backward, _plain_backward)

tpu_attention.defvjp(
    lambda qkv, heads: (_forward(qkv, heads), qkv),
    lambda heads, qkv, gradient: (_backward(qkv, gradient, heads),),
)
