"""Makes functions into primitives of JAX, to give them a transpose of their own.

`jax.custom_vjp` gives a function its own gradient too, but rules out forward mode (`jax.jvp`,
`jax.linearize`, `jax.hessian`). A primitive is differentiated in both modes, to any order.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def make_primitive(name: str, function: Callable[..., jax.Array]) -> Primitive:
    """Makes a primitive that computes `function`, of arrays, with keyword arguments that are not.

    The caller defines how it is differentiated. Under `jax.vmap` it is the function itself, which
    JAX then differentiates by its own rules.
    """
    primitive = Primitive(name)
    primitive.def_impl(function)
    primitive.def_abstract_eval(
        lambda *avals, **options: jax.make_jaxpr(partial(function, **options))(*avals).out_avals[0]
    )
    batching.primitive_batchers[primitive] = lambda arrays, axes, **options: (
        jax.vmap(partial(function, **options), axes)(*arrays),
        0,
    )
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive
