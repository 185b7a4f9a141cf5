"""Uploads a trained run to the Hugging Face Hub: weights, model card and picture."""

import ast
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from mae_jax.checkpoints.find import locate
from mae_jax.errors import UserError
from mae_jax.interop.hub import PREFIX, check_repository, upload
from mae_jax.interop.trained import read_trained, write_trained

PICTURE = 'images/latest.png'
"""Of a work directory; the card shows it by this path."""


def push(
    source: str | os.PathLike,
    repository: str,
    *,
    private: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Uploads `model.safetensors`, whose header holds the config, `README.md` and the picture.

    The README is the run's model card. No path of this machine is uploaded.

    Args:
      source: a work directory of a finished run, or one of its checkpoints, whose weights are then
        those that are uploaded.
      repository: 'owner/name'; it is made if there is none.
      private: whether it is made private, or must be so if it exists.
      say: called with lines about what was uploaded.

    Raises:
      UserError: it is no finished run, or the upload failed (see `hub.upload`).
    """
    check_repository(repository)
    workdir = locate(source)[0].parent
    card = workdir / 'model_card.md'
    if not card.exists():
        raise UserError(
            f'{workdir} has no model_card.md: a run writes it at its end; run its command again.'
        )
    trained = read_trained(source)
    with tempfile.TemporaryDirectory() as folder:
        write_trained(Path(folder, 'model.safetensors'), trained)
        readme = readme_of(card.read_text(), repository)
        Path(folder, 'README.md').write_text(readme)
        if (workdir / PICTURE).exists():
            Path(folder, PICTURE).parent.mkdir()
            (workdir / PICTURE).copy(Path(folder, PICTURE))
        names = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file())
        message = f'{workdir.name}, step {trained.step:,}, by mae_jax'
        address = upload(folder, repository, private=private, message=message)
    say(f'{address}: {", ".join(names)}')
    say(f"load it: mae_jax.load_encoder('{PREFIX}{repository}')")
    say('choose a license: the line `# license:` at the top of README.md, on the page or here')


def readme_of(card: str, repository: str) -> str:
    """Returns a model card in which the paths of this machine are those of the Hub."""

    def last_component(match: re.Match) -> str:
        return f'| started from | `{os.path.basename(os.path.normpath(match[1]))}` |'

    card = re.sub(r'^\| started from \| `(.*)` \|$', last_component, card, flags=re.MULTILINE)
    card = card.replace('is in `config.json`', 'is in the header of `model.safetensors`')
    address = PREFIX + repository
    if line := re.search(r"^path = (['\"].*['\"])(  # .*)?$", card, re.MULTILINE):
        path = ast.literal_eval(line[1])  # where the run was when it ended
        card = card.replace(line[0], f'path = {address!r}')
        card = card.replace(f'mae-jax convert {shlex.quote(path)} ', f'mae-jax convert {address} ')
    return card
