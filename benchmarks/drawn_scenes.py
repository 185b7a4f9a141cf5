"""Draws street scenes with masks: data of one's own for a first look at segmentation.

    python benchmarks/drawn_scenes.py drawn_scenes
    mae-jax train segment:linear --config.init_from=RUN --config.dataset.path=drawn_scenes

Writes `images/<split>/NNN.png`, `annotations/<split>/NNN.png` and classes.txt with the colours of
the classes. Colours vary from scene to scene and overlap between classes, so that a pixel alone
does not have its class written on it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = {
    'sky': (135, 190, 235),
    'hill': (110, 150, 90),
    'road': (120, 110, 130),
    'house': (200, 120, 80),
    'roof': (150, 40, 40),
    'tree': (30, 100, 50),
    'car': (60, 60, 200),
    'sun': (250, 210, 60),
}
SIZE = 192, 144
"""Width and height in pixels."""
FINER = 2
"""Images are drawn so many times larger, and reduced: edges are smooth, but not those of masks."""


class Scene:
    """Draws shapes into an image and into its mask.

    Attributes:
      rng: of what is random.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        size = tuple(FINER * side for side in SIZE)
        self.rng = rng
        self.image, self.mask = Image.new('RGB', size), Image.new('L', SIZE)
        self._on_image, self._on_mask = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def colour(self, *around: int, spread: int = 30) -> tuple[int, ...]:
        """Draws a colour around another one."""
        drawn = around + self.rng.integers(-spread, spread + 1, len(around))
        return tuple(drawn.clip(0, 255).tolist())

    def shape(self, kind: str, points: list, colour: tuple[int, ...], name: str | None) -> None:
        """Draws an ellipse, a rectangle or a polygon; `name` None leaves the mask as it is."""
        points = [tuple(map(float, point)) for point in points]
        finer = [(FINER * x, FINER * y) for x, y in points]
        getattr(self._on_image, kind)(finer, fill=colour)
        if name is not None:
            getattr(self._on_mask, kind)(points, fill=list(CLASSES).index(name))

    def finish(self) -> tuple[Image.Image, Image.Image]:
        """Returns the image, with light from one side and noise, and the mask."""
        pixels = np.asarray(self.image.resize(SIZE, Image.Resampling.BOX), np.float32)
        low, high = np.sort(self.rng.uniform(0.75, 1.15, 2))
        light = np.linspace(low, high, SIZE[0])[None, :, None]
        pixels = pixels * light + self.rng.normal(0, 6, pixels.shape)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), self.mask


def draw(seed: int) -> tuple[Image.Image, Image.Image]:
    """Draws a scene: the image, and the mask with the numbers of its classes."""
    scene = Scene(rng := np.random.default_rng(seed))
    width, height = SIZE
    horizon = height * rng.uniform(0.35, 0.55)
    scene.shape('rectangle', [(0, 0), (width, height)], scene.colour(150, 185, 215), 'sky')
    if rng.random() < 0.7:
        x, y, r = rng.uniform(0, width), rng.uniform(10, horizon * 0.6), rng.uniform(7, 13)
        scene.shape('ellipse', [(x - r, y - r), (x + r, y + r)], scene.colour(235, 205, 110), 'sun')
    for _ in range(2):
        x, r, rise = rng.uniform(0, width), rng.uniform(50, 110), rng.uniform(10, 35)
        box = [(x - r, horizon - rise), (x + r, horizon + 3 * rise)]
        scene.shape('ellipse', box, scene.colour(115, 140, 90), 'hill')
    scene.shape('rectangle', [(0, horizon), (width, height)], scene.colour(115, 140, 90), 'hill')
    middle, near = rng.uniform(0.3, 0.7, 2) * width
    road = [(middle - 8, horizon), (middle + 8, horizon), (near + 65, height), (near - 65, height)]
    scene.shape('polygon', road, scene.colour(125, 120, 125), 'road')
    things: list[Callable[..., None]] = [house, house, tree, tree, tree, car, car]
    depths = np.sort(rng.uniform(0.05, 1, len(things)))  # what is near hides what is far
    for depth, thing in zip(depths, rng.permutation(np.array(things, object)), strict=True):
        ground = horizon + depth * (height - horizon) * 0.9
        aside = (8 + 57 * depth) * rng.uniform(-0.6, 0.6)
        on_road = middle + (near - middle) * depth + aside
        x = on_road if thing is car else rng.uniform(0, width)
        thing(scene, x, ground, 0.35 + depth)
    return scene.finish()


def house(scene: Scene, x: float, y: float, size: float) -> None:
    """Draws a house whose wall ends below at (x, y)."""
    w, h = size * scene.rng.uniform(16, 26), size * scene.rng.uniform(22, 38)
    scene.shape('rectangle', [(x - w, y - h), (x + w, y)], scene.colour(190, 150, 120), 'house')
    roof = [(x - 1.15 * w, y - h), (x + 1.15 * w, y - h), (x, y - h - 0.8 * w)]
    scene.shape('polygon', roof, scene.colour(140, 80, 70), 'roof')
    pane = scene.colour(90, 110, 130)
    for left, top in [(-0.7, 0.8), (0.25, 0.8), (-0.7, 0.4), (0.25, 0.4)]:
        corner = x + left * w, y - top * h
        end = corner[0] + 0.45 * w, corner[1] + 0.22 * h
        scene.shape('rectangle', [corner, end], pane, None)


def tree(scene: Scene, x: float, y: float, size: float) -> None:
    """Draws a tree that stands at (x, y)."""
    h, trunk = size * scene.rng.uniform(26, 42), size * 2.5
    bark = scene.colour(100, 75, 55)
    scene.shape('rectangle', [(x - trunk, y - h), (x + trunk, y)], bark, 'tree')
    leaves = scene.colour(60, 105, 60)
    for _ in range(7):
        dx, dy = scene.rng.normal(0, size * 6, 2)
        r = size * scene.rng.uniform(6, 11)
        box = [(x + dx - r, y - h + dy - r), (x + dx + r, y - h + dy + r)]
        shade = tuple(np.clip(c + scene.rng.integers(-12, 13), 0, 255) for c in leaves)
        scene.shape('ellipse', box, tuple(map(int, shade)), 'tree')


def car(scene: Scene, x: float, y: float, size: float) -> None:
    """Draws a car whose wheels stand at (x, y)."""
    w, h = size * 15, size * 6
    paint = scene.colour(140, 110, 120, spread=90)
    cabin = [(x - 0.6 * w, y - h), (x + 0.6 * w, y - h), (x + 0.4 * w, y - 2.2 * h)]
    cabin += [(x - 0.35 * w, y - 2.2 * h)]
    scene.shape('polygon', cabin, scene.colour(90, 110, 130), 'car')
    scene.shape('rectangle', [(x - w, y - 1.3 * h), (x + w, y - 0.3 * h)], paint, 'car')
    for side in (-0.55, 0.55):
        r = 0.5 * h
        wheel = [(x + side * w - r, y - 2 * r), (x + side * w + r, y)]
        scene.shape('ellipse', wheel, (30, 30, 30), 'car')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--train', type=int, default=200, help='number of training scenes')
    parser.add_argument('--val', type=int, default=50, help='number of held-out scenes')
    options = parser.parse_args()
    seed = 0
    for split, number in (('train', options.train), ('val', options.val)):
        for kind in ('images', 'annotations'):
            (options.folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            for kind, picture in zip(('images', 'annotations'), draw(seed), strict=True):
                picture.save(options.folder / kind / split / f'{index:03d}.png')
            seed += 1
    lines = [' '.join(map(str, (name, *colour))) for name, colour in CLASSES.items()]
    (options.folder / 'classes.txt').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
