"""The Python of README.md works as it stands, beside a run of its commands."""

import re

import numpy as np
import pytest
from helpers.commands import ROOT


@pytest.mark.slow
def test_python_of_the_readme_trains_a_head_and_goes_to_nnx(
    pretrained, tmp_path, monkeypatch, capsys
):
    blocks = re.findall('```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'quickstart').symlink_to(pretrained[0])
    monkeypatch.chdir(tmp_path)
    names = {'__name__': 'readme'}
    for block in blocks:
        exec(block, names)
    (accuracy,) = re.findall(r'^accuracy (.*)$', capsys.readouterr().out, re.M)
    assert float(accuracy) > 0.6  # by chance 0.1; the encoder has seen four steps
    encoder, images = names['encoder'], names['images']
    expected = encoder.apply(
        {'params': names['pretrained']}, images, method='features', output='mean'
    )
    np.testing.assert_allclose(names['features'], expected, rtol=1e-5, atol=1e-5)
