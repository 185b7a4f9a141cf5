"""A ViTDet checkpoint as detectron2 names its tensors, and what its modules compute.

Names and shapes are written out from detectron2's public source; the modules below compute with
channels first, by its names, and share nothing with the package.
"""

import jax
import jax.numpy as jnp
import numpy as np

CHANNELS, CLASSES, DENSE, WIDTH, HEADS, PATCH = 8, 3, 12, 16, 2, 4
GRID, WINDOW = 8, 3


def shapes() -> dict[str, tuple[int, ...]]:
    """Two blocks, the first with windows of 3 x 3 patches, the second over all 8 x 8."""
    named = {
        'backbone.net.pos_embed': (1, 17, WIDTH),
        'backbone.net.patch_embed.proj.weight': (WIDTH, 3, PATCH, PATCH),
        'backbone.net.patch_embed.proj.bias': (WIDTH,),
    }
    for block, side in enumerate((WINDOW, GRID)):
        name = f'backbone.net.blocks.{block}'
        for norm in ('norm1', 'norm2'):
            named |= {f'{name}.{norm}.weight': (WIDTH,), f'{name}.{norm}.bias': (WIDTH,)}
        for leaf in ('rel_pos_h', 'rel_pos_w'):
            named[f'{name}.attn.{leaf}'] = (2 * side - 1, WIDTH // HEADS)
        for layer, (n, m) in {
            'attn.qkv': (3 * WIDTH, WIDTH),
            'attn.proj': (WIDTH, WIDTH),
            'mlp.fc1': (4 * WIDTH, WIDTH),
            'mlp.fc2': (WIDTH, 4 * WIDTH),
        }.items():
            named |= {f'{name}.{layer}.weight': (n, m), f'{name}.{layer}.bias': (n,)}

    def layer(name: str, *shape: int, outputs: int | None = None) -> None:
        named[f'{name}.weight'] = shape
        named[f'{name}.bias'] = (shape[0] if outputs is None else outputs,)

    def normed(name: str, *shape: int) -> None:
        named[f'{name}.weight'] = shape
        named[f'{name}.norm.weight'] = named[f'{name}.norm.bias'] = (shape[0],)

    half, quarter = WIDTH // 2, WIDTH // 4
    layer('backbone.simfp_2.0', WIDTH, half, 2, 2, outputs=half)
    layer('backbone.simfp_2.1', half)
    layer('backbone.simfp_2.3', half, quarter, 2, 2, outputs=quarter)
    layer('backbone.simfp_3.0', WIDTH, half, 2, 2, outputs=half)
    for place, width in {'2.4': quarter, '3.1': half, '4.0': WIDTH, '5.1': WIDTH}.items():
        stage, first = place.split('.')
        normed(f'backbone.simfp_{place}', CHANNELS, width, 1, 1)
        normed(f'backbone.simfp_{stage}.{int(first) + 1}', CHANNELS, CHANNELS, 3, 3)
    rpn = 'proposal_generator.rpn_head'
    layer(f'{rpn}.conv.conv0', CHANNELS, CHANNELS, 3, 3)
    layer(f'{rpn}.conv.conv1', CHANNELS, CHANNELS, 3, 3)
    layer(f'{rpn}.objectness_logits', 3, CHANNELS, 1, 1)
    layer(f'{rpn}.anchor_deltas', 12, CHANNELS, 1, 1)
    for number in range(1, 5):
        normed(f'roi_heads.box_head.conv{number}', CHANNELS, CHANNELS, 3, 3)
        normed(f'roi_heads.mask_head.mask_fcn{number}', CHANNELS, CHANNELS, 3, 3)
    layer('roi_heads.box_head.fc1', DENSE, CHANNELS * 49)
    layer('roi_heads.box_predictor.cls_score', CLASSES + 1, DENSE)
    layer('roi_heads.box_predictor.bbox_pred', 4 * CLASSES, DENSE)
    layer('roi_heads.mask_head.deconv', CHANNELS, CHANNELS, 2, 2)
    layer('roi_heads.mask_head.predictor', CLASSES, CHANNELS, 1, 1)
    return named


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (0.3 * rng.normal(size=s)).astype(np.float32) for n, s in shapes().items()}


class Modules:
    """What detectron2's modules compute of these tensors, [B, D, h, w]."""

    def __init__(self, named: dict[str, np.ndarray]):
        self.named = named

    def conv(self, x, name):
        layout = ('NCHW', 'OIHW', 'NCHW')
        y = jax.lax.conv_general_dilated(
            x, self.named[f'{name}.weight'], (1, 1), 'SAME', dimension_numbers=layout
        )
        if f'{name}.norm.weight' in self.named:
            return self.norm(y, f'{name}.norm')
        return y + self.named[f'{name}.bias'][:, None, None]

    def norm(self, x, name):
        centred = x - x.mean(axis=1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
        scale, bias = (self.named[f'{name}.{leaf}'][:, None, None] for leaf in ('weight', 'bias'))
        return scale * normal + bias

    def double(self, x, name):
        y = np.einsum('bchw,coij->bohiwj', x, self.named[f'{name}.weight'])
        y = y.reshape(*y.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        return y + self.named[f'{name}.bias'][:, None, None]

    def linear(self, x, name):
        return x @ self.named[f'{name}.weight'].T + self.named[f'{name}.bias']

    def pyramid(self, x):
        f, maps = 'backbone.simfp_', []
        y = jax.nn.gelu(self.norm(self.double(x, f + '2.0'), f + '2.1'), approximate=False)
        y = self.double(y, f + '2.3')
        maps.append(self.conv(self.conv(y, f + '2.4'), f + '2.5'))
        maps.append(self.conv(self.conv(self.double(x, f + '3.0'), f + '3.1'), f + '3.2'))
        maps.append(self.conv(self.conv(x, f + '4.0'), f + '4.1'))
        y = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))
        maps.append(self.conv(self.conv(y, f + '5.1'), f + '5.2'))
        return [*maps, maps[-1][:, :, ::2, ::2]]

    def proposals(self, x):
        """Logits and deltas of one map, the anchors of a place next to each other."""
        name = 'proposal_generator.rpn_head'
        for layer in ('conv.conv0', 'conv.conv1'):
            x = jax.nn.relu(self.conv(x, f'{name}.{layer}'))
        logits = self.conv(x, f'{name}.objectness_logits').transpose(0, 2, 3, 1)
        deltas = self.conv(x, f'{name}.anchor_deltas')
        deltas = deltas.reshape(len(x), 3, 4, *x.shape[2:]).transpose(0, 3, 4, 1, 2)
        return logits.reshape(len(x), -1), deltas.reshape(len(x), -1, 4)

    def boxes(self, x):
        for number in range(1, 5):
            x = jax.nn.relu(self.conv(x, f'roi_heads.box_head.conv{number}'))
        x = jax.nn.relu(self.linear(x.reshape(len(x), -1), 'roi_heads.box_head.fc1'))
        deltas = self.linear(x, 'roi_heads.box_predictor.bbox_pred')
        scores = self.linear(x, 'roi_heads.box_predictor.cls_score')
        return scores, deltas.reshape(len(x), -1, 4)

    def masks(self, x):
        for number in range(1, 5):
            x = jax.nn.relu(self.conv(x, f'roi_heads.mask_head.mask_fcn{number}'))
        x = jax.nn.relu(self.double(x, 'roi_heads.mask_head.deconv'))
        return jnp.asarray(self.conv(x, 'roi_heads.mask_head.predictor'))
