"""Rules that map our parameters to the tensors of other libraries, and the layouts of these.

A rule maps one of our parameters to the tensors of the other library that it is made of. Its layout
converts between them in both directions. A layout only moves numbers, so that both directions are
exact. `{i}` in a name stands for the number of a block.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mae_jax.errors import UserError


class Sizes(NamedTuple):
    """Sizes that a layout needs beside the shape of a tensor."""

    patch_size: int
    heads: int


class Layout(NamedTuple):
    """Converts the tensors of another library to one of ours, and back."""

    to_ours: Callable[..., np.ndarray]
    to_theirs: Callable[[np.ndarray, Sizes], tuple[np.ndarray, ...]]


class Rule(NamedTuple):
    """The name of one of our parameters, those of the tensors it is made of, and the layout."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def _with_heads(kernel: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Splits the last axis by heads: [..., H*d] -> [..., H, d]."""
    return kernel.reshape(*kernel.shape[:-1], sizes.heads, -1)


def _without_cls(table: np.ndarray, sizes: Sizes) -> tuple[np.ndarray]:
    if table[:, 0].any():
        raise UserError(
            'big_vision has no position for the cls token, and this model learned one: convert it '
            "to 'augreg', which big_vision reads too."
        )
    return (table[:, 1:],)


SAME = Layout(lambda x: x, lambda x, sizes: (x,))
LINEAR = Layout(lambda x: x.T, lambda x, sizes: (x.T,))
"""[out, in] <-> [in, out]."""
CONV = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
    lambda x, sizes: (
        x.reshape(sizes.patch_size, sizes.patch_size, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    ),
)
"""[D, C, P, P] <-> [P*P*C, D]."""
PATCHES = Layout(
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x, sizes: (x.reshape(sizes.patch_size, sizes.patch_size, -1, x.shape[-1]),),
)
"""[P, P, C, D] <-> [P*P*C, D]."""
QKV = Layout(
    lambda *qkv: np.concatenate([x.T for x in qkv], axis=-1),
    lambda x, sizes: tuple(third.T for third in np.split(x, 3, axis=-1)),
)
"""Three of [out, in], or of [out] <-> one [in, 3*out], or [3*out]."""
QKV_HEADS = Layout(
    lambda *qkv: np.concatenate([x.reshape(*x.shape[:-2], -1) for x in qkv], axis=-1),
    lambda x, sizes: tuple(_with_heads(third, sizes) for third in np.split(x, 3, axis=-1)),
)
"""Three of [D, H, d], or of [H, d] <-> one [D, 3*H*d], or [3*H*d]."""
PROJ_HEADS = Layout(
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x, sizes: (x.reshape(sizes.heads, -1, x.shape[-1]),),
)
"""[H, d, D] <-> [H*d, D]."""
POSITIONS_WITHOUT_CLS = Layout(
    lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1), _without_cls
)
"""[1, N, D] <-> [1, 1 + N, D]."""


def rule(ours: str, theirs: str, layout: Layout = SAME) -> Rule:
    """Makes the rule of a parameter that is made of one tensor."""
    return Rule(ours, (theirs,), layout)


def norm(ours: str, theirs: str, scale: str = '.weight', bias: str = '.bias') -> list[Rule]:
    """Makes the rules of a norm."""
    return [rule(f'{ours}/scale', theirs + scale), rule(f'{ours}/bias', theirs + bias)]


def linear(ours: str, theirs: str, layout: Layout = LINEAR) -> list[Rule]:
    """Makes the rules of a linear layer."""
    return [
        rule(f'{ours}/kernel', f'{theirs}.weight', layout),
        rule(f'{ours}/bias', f'{theirs}.bias'),
    ]
