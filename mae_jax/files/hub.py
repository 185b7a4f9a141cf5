"""Downloads models that are named `hf://owner/name[@revision]` from the Hugging Face Hub."""

import os
import re
from typing import Any

from mae_jax.errors import UserError, brief

SCHEME = 'hf://'
SAFE_FILES = (
    'config.json',
    'preprocessor_config.json',
    'model.safetensors',
    'model-*.safetensors',
    'model.safetensors.index.json',
)
PYTORCH_FILE = 'pytorch_model.bin'
"""Downloaded only where a repository has no safetensors."""


def local_path(path: str | os.PathLike) -> str | os.PathLike:
    """Returns the directory that a model of the Hub was downloaded to; other paths as they are.

    The Hub's library keeps what it downloads, and without a network gives what it has kept. It
    finds the user's token by itself.

    Args:
      path: hf://owner/name, hf://owner/name@revision, or any other path.

    Raises:
      UserError: huggingface_hub is not installed, or the model cannot be downloaded.
    """
    name = os.fspath(path)
    if not isinstance(name, str) or not name.startswith(SCHEME):
        return path
    match = re.fullmatch(r'hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?', name)
    if match is None:
        raise UserError(f'{name} is no model of the Hub: give hf://owner/name[@revision].')
    hub = _import_hub(name)
    try:
        folder = hub.snapshot_download(match[1], revision=match[2], allow_patterns=SAFE_FILES)
        if not any(file.endswith(('.safetensors', '.index.json')) for file in os.listdir(folder)):
            folder = hub.snapshot_download(
                match[1], revision=match[2], allow_patterns=(*SAFE_FILES[:2], PYTORCH_FILE)
            )
    except Exception as error:  # of the network, of the Hub, of its library
        raise UserError(
            f'{name} cannot be downloaded ({brief(error)}): check the name and the network, and '
            'for a private model log in with `hf auth login`.'
        ) from error
    return folder


def _import_hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f'{name} is on the Hugging Face Hub: pip install huggingface_hub.'
        ) from error
    return huggingface_hub
