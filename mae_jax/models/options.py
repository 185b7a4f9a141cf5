"""What an encoder may have beside the original's: relative positions, layer scale, windows."""

import dataclasses
import math
from typing import Any

from mae_jax.errors import UserError

RELATIVE_POSITIONS = ('none', 'beit', 'vitdet')
ADDED = ('relative_table', 'rel_pos_h', 'rel_pos_w', 'attention_scale', 'mlp_scale')
"""Last components of the names of parameters that options add to an encoder."""


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """Options of an encoder and its blocks; by default all are as in the original MAE.

    Attributes:
      relative_positions: what attention adds to its logits: 'none'; 'beit': a learned bias for
        each head and offset, with three more for the cls token (BEiT, arXiv 2106.08254); or
        'vitdet': the query's products with embeddings of vertical and of horizontal offsets
        (ViTDet, arXiv 2203.16527). Both start at zero, which changes nothing.
      layer_scale: initial value of what multiplies each branch, channel by channel (CaiT, arXiv
        2103.17239); None: there is none.
      key_bias: whether keys have a bias; without it, as in BEiT, its third of `qkv/bias` stays
        zero.
      absolute_positions: whether a table of positions is added to the patches.
      cls_token: whether there is a cls token before the patches.
      window: side of the windows, in patches, in which attention is computed; 0: over all.
      global_blocks: the blocks whose attention is over all patches although there are windows.
    """

    relative_positions: str = 'none'
    layer_scale: float | None = None
    key_bias: bool = True
    absolute_positions: bool = True
    cls_token: bool = True
    window: int = 0
    global_blocks: tuple[int, ...] = ()

    def changed(self) -> dict[str, Any]:
        """Returns the options that are not as in the original, by name."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @property
    def needs_whole_images(self) -> bool:
        """Returns whether the blocks have to know which patch a token is of."""
        return bool(self.window) or self.relative_positions != 'none'

    def window_of(self, block: int) -> int:
        """Returns the side of the windows of a block, 0 for one without."""
        return 0 if block in self.global_blocks else self.window

    def borders(self, depth: int) -> set[int]:
        """Returns the blocks whose windows are of another size than those of the block before."""
        return {i for i in range(1, depth) if self.window_of(i) != self.window_of(i - 1)}

    def check(self, depth: int) -> None:
        """Raises a UserError for a value that is unknown, or that contradicts another."""
        if self.relative_positions not in RELATIVE_POSITIONS:
            raise UserError(
                f'model.relative_positions={self.relative_positions!r} is unknown: use '
                f'{" | ".join(RELATIVE_POSITIONS)}.'
            )
        if self.layer_scale is not None and not math.isfinite(self.layer_scale):
            raise UserError(f'model.layer_scale={self.layer_scale} must be a number, such as 0.1.')
        if self.window < 0:
            raise UserError(f'model.window={self.window} must be at least 0, which is no windows.')
        if self.cls_token and (self.window or self.relative_positions == 'vitdet'):
            field = 'window' if self.window else 'relative_positions'
            raise UserError(
                f'model.{field}={getattr(self, field)!r} is for patches alone: add '
                'model.cls_token=False.'
            )
        if unknown := [i for i in self.global_blocks if not 0 <= i < depth]:
            raise UserError(
                f'model.global_blocks={self.global_blocks}: there is no block {unknown[0]} among '
                f'the {depth} of the encoder: give numbers from 0 to {depth - 1}.'
            )
