"""Reads models of the Hugging Face Hub, `hf://owner/name`, and uploads folders to it.

All of it goes through huggingface_hub, an extra (`pip install 'mae_jax[hub]'`), which is imported
when it is needed. It finds the token (`hf auth login`, or HF_TOKEN) and keeps the cache; no token
passes through this module.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mae_jax.errors import UserError, brief
from mae_jax.files.tensors import read_safetensors_metadata
from mae_jax.interop.trained import HEADER

PREFIX = 'hf://'
REPOSITORY = r'\w[\w.-]*/\w[\w.-]*'
LOGIN = 'log in with `hf auth login`, or set HF_TOKEN to a token of your account'
WEIGHTS = ('model.safetensors', 'model.safetensors.index.json', 'model-*.safetensors')
FALLBACK = ('pytorch_model.bin',)
"""Weights that are fetched where a repository has none of the others."""
BESIDE = ('config.json', 'preprocessor_config.json')


class Location(NamedTuple):
    """What a URI names."""

    repository: str
    """'owner/name'."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""
    path: str
    """A file or folder in the repository; '' is its root."""


def is_hub(path: str | os.PathLike) -> bool:
    """Returns whether a path is a model on the Hub: 'hf://...'."""
    return os.fspath(path).startswith(PREFIX)


def parse(uri: str) -> Location:
    """Splits 'hf://owner/name[@revision][/path]'.

    Raises:
      UserError: it does not have that form.
    """
    match = re.fullmatch(rf'hf://({REPOSITORY})(?:@([^/@]+))?(?:/(.+?))?/*', uri)
    if not match or '..' in (match[3] or '').split('/'):
        raise UserError(f'{uri!r} is not of the form hf://owner/name[@revision][/file].')
    return Location(match[1], match[2], match[3] or '')


def download(uri: str) -> str:
    """Downloads a model to the cache of huggingface_hub, unless it is there already.

    Args:
      uri: 'hf://owner/name' of a model that `push` uploaded or that has the files of Hugging Face's
        transformers; '@revision' (a branch, tag or commit) and '/file' can follow.

    Returns:
      The local path of a file of ours, of the file that the URI names, or of a directory of
      Hugging Face.

    Raises:
      UserError: huggingface_hub is not installed, there is no such model, or the Hub cannot be
        reached and the model is not in the cache.
    """
    hub, where = _library(uri), parse(uri)

    def fetch(names: tuple[str, ...]) -> Path:
        wanted = [f'{where.path}/{name}' if where.path else name for name in names]
        with _explained(uri):
            root = hub.snapshot_download(
                where.repository,
                revision=where.revision,
                allow_patterns=[*wanted, where.path] if where.path else wanted,
            )
        return Path(root, where.path)

    local = fetch(WEIGHTS + BESIDE)
    if local.is_file():
        return str(local)
    if not any((local / name).exists() for name in WEIGHTS[:2]):
        local = fetch(FALLBACK + BESIDE)
    own = local / WEIGHTS[0]
    if own.exists():
        return str(own if HEADER in read_safetensors_metadata(own) else local)
    if not any((local / name).exists() for name in WEIGHTS[:2] + FALLBACK):
        raise UserError(
            f'{uri} has neither {WEIGHTS[0]} nor {FALLBACK[0]}: name its file of weights, as in '
            f'{PREFIX}{where.repository}/<file>.'
        )
    return str(local)


def upload(folder: str | os.PathLike, repository: str, *, private: bool, message: str) -> str:
    """Uploads the files of a folder as one commit, to a model repository that is made if needed.

    Args:
      folder: local; other files of the repository stay as they are.
      repository: 'owner/name'.
      private: whether it is made private, or must be so if it exists.
      message: of the commit.

    Returns:
      The address of the repository.

    Raises:
      UserError: huggingface_hub or a token is missing, the token may not write there, the
        repository is public although `private` was given, or the Hub cannot be reached.
    """
    check_repository(repository)
    hub = _library(repository)
    if not hub.get_token():
        raise UserError(f'{repository} cannot be written without a token: {LOGIN}.')
    with _explained(repository):
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(f'{repository} exists and is public: choose another name.')
        api.upload_folder(repo_id=repository, folder_path=os.fspath(folder), commit_message=message)
    return str(address)


def check_repository(repository: str) -> None:
    """Raises a UserError unless a name has the form 'owner/name'."""
    if not re.fullmatch(REPOSITORY, repository):
        raise UserError(f'{repository!r} is not the name of a repository: give owner/name.')


def _library(name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name} needs huggingface_hub: pip install 'mae_jax[hub]', or huggingface_hub alone."
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a UserError of one sentence, without its URLs."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f'{name} is gated: accept its conditions on its page, and {LOGIN}.'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f'{name} does not exist, or is private: check the name, or {LOGIN}.'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f'{name}: there is no such branch, tag or commit.') from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f'{name} is not in the cache, and the Hub cannot be reached: connect, or unset '
            'HF_HUB_OFFLINE.'
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f'{name} is not a name that the Hub accepts: give owner/name.') from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, 'status_code', None)
        if status in (401, 403):
            raise UserError(
                f'the Hub refuses {name}: the token is not valid or may not write there; {LOGIN} '
                'that has the right to write.'
            ) from error
        raise UserError(
            f'the Hub answers {name} with HTTP status {status}: try again later.'
        ) from error
    except Exception as error:  # huggingface_hub 0.x and 1.x raise errors of different libraries
        raise UserError(
            f'{name}: the Hub cannot be reached ({type(error).__name__}: {brief(error)}): connect, '
            'or unset HF_HUB_OFFLINE.'
        ) from error
