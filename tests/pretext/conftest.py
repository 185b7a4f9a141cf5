import pytest


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes a user's module: user_module(source) -> its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f'module_of_{tmp_path.name}'

    def write(source: str) -> str:
        (tmp_path / f'{name}.py').write_text(f'import jax.numpy as jnp\n\n{source}\n')
        return name

    return write
