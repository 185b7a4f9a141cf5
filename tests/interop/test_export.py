"""Exported models: StableHLO and ONNX give the outputs of the model they were made of."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop import export as module
from mae_jax.interop.convert import convert
from mae_jax.interop.export import export
from mae_jax.interop.read import read_model
from mae_jax.models.patches import patchify

ALONE = """
import json, sys
import jax, numpy as np
folder, what, path = sys.argv[1:]
assert not any(name.startswith('mae_jax') for name in sys.modules)
sys.modules['mae_jax'] = None  # importing it raises ImportError, also where it is installed
about = json.load(open(f'{folder}/{what}.stablehlo.json'))
exported = jax.export.deserialize(bytearray(open(f'{folder}/{about["file"]}', 'rb').read()))
given = np.load(path)
outputs = exported.call(*(given[value['name']] for value in about['inputs']))
np.savez(path, **outputs)
"""
"""What a user of a file does, in a process without the package."""


def images_of(batch, dtype=np.uint8):
    """Images of the digits' size."""
    return np.random.default_rng(1).integers(0, 256, (batch, 8, 8, 1)).astype(dtype)


def expected_features(run, images):
    """The encoder's outputs by the public interface."""
    encoder, params = mae_jax.load_encoder(run)
    inputs = mae_jax.load_normalize(run)(images)
    return {
        name: encoder.apply({'params': params}, inputs, method='features', output=name)
        for name in ('cls', 'mean', 'tokens')
    }


def expected_reconstruction(run, images, noise):
    """Images whose hidden patches are the prediction, by NumPy, patch by patch."""
    model, params = mae_jax.load(run)
    data = json.loads((run / 'config.json').read_text())['dataset']
    inputs = (images / data['scale'] - np.array(data['mean'])) / np.array(data['std'])
    inputs = inputs.astype(np.float32)
    output = model.apply({'params': params}, inputs, noise=noise)
    pixels = model.apply({'params': params}, output.prediction, inputs, method='pixels')
    pixels = (np.asarray(pixels) * data['std'][0] + data['mean'][0]) * data['scale']
    patches = patchify(images.astype(np.float32), model.patch_size)
    for image, patch in np.argwhere(np.asarray(output.mask)):
        patches[image, patch] = pixels[image, patch]
    return patches, np.asarray(output.mask), model.patch_size


def call(folder, what, *arrays):
    """Calls an exported file in this process."""
    content = bytearray((folder / f'{what}.stablehlo').read_bytes())
    return jax.device_get(jax.export.deserialize(content).call(*arrays))


def test_the_encoder_gives_its_features_for_any_number_of_images(pretrained, tmp_path):
    run = pretrained[0]
    lines = []
    export(run, tmp_path, say=lines.append)
    for batch in (1, 5):
        images = images_of(batch)
        actual = call(tmp_path, 'encoder', images)
        assert actual.keys() == {'cls', 'mean', 'tokens'}
        for name, values in expected_features(run, images).items():
            np.testing.assert_allclose(actual[name], values, atol=1e-5)
    about = json.loads((tmp_path / 'encoder.stablehlo.json').read_text())
    assert about['inputs'][0]['shape'] == ['batch', 8, 8, 1]
    assert about['inputs'][0]['dtype'] == 'uint8'
    assert [x['name'] for x in about['outputs']] == ['cls', 'mean', 'tokens']
    for output in about['outputs']:
        assert output['shape'] == ['batch', *actual[output['name']].shape[1:]]
        assert output['dtype'] == actual[output['name']].dtype
    assert about['normalisation']['mean'] == [pytest.approx(0.305)]
    assert about['step'] == 4 and about['versions']['jax'] == jax.__version__
    assert 'the largest difference is' in lines[0] and str(tmp_path) in lines[1]


def test_the_reconstruction_replaces_the_patches_that_the_noise_hides(pretrained, tmp_path):
    run = pretrained[0]
    export(run, tmp_path, what='reconstruction', input_dtype='float32', say=lambda line: None)
    images, noise = images_of(3, np.float32), np.random.default_rng(2).random((3, 16), np.float32)
    actual = call(tmp_path, 'reconstruction', images, noise)
    patches, mask, size = expected_reconstruction(run, images, noise)
    np.testing.assert_array_equal(actual['mask'], mask)
    np.testing.assert_allclose(patchify(actual['reconstruction'], size), patches, atol=1e-3)
    assert mask.sum(axis=1).tolist() == [8, 8, 8]


def test_a_classifier_gives_the_logits_of_its_average(fine_tuned, tmp_path):
    run = fine_tuned[0]
    export(run, tmp_path, say=lambda line: None)
    images = images_of(4)
    model, params = mae_jax.load(run)
    expected = model.apply({'params': params}, mae_jax.load_normalize(run)(images))
    actual = call(tmp_path, 'classifier', images)['logits']
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    about = json.loads((tmp_path / 'classifier.stablehlo.json').read_text())
    assert about['class_names'] == list('0123456789')


def test_class_names_go_along_with_a_classifier_and_not_with_its_encoder(fine_tuned, tmp_path):
    names = tuple('0123456789')
    run, file = fine_tuned[0], tmp_path / 'classifier.safetensors'
    assert read_model(run).class_names == names
    convert(run, file, run=False, say=lambda line: None)
    assert read_model(file).class_names == names
    export(file, tmp_path, say=lambda line: None)
    about = json.loads((tmp_path / 'classifier.stablehlo.json').read_text())
    assert about['class_names'] == list(names)
    export(file, tmp_path, what='encoder', say=lambda line: None)
    assert 'class_names' not in json.loads((tmp_path / 'encoder.stablehlo.json').read_text())
    convert(run, tmp_path / 'encoder.safetensors', encoder_only=True, run=False)
    assert read_model(tmp_path / 'encoder.safetensors').class_names == ()


@pytest.mark.parametrize(
    ('content', 'names'),
    [
        ('["a", "b"]', ()),  # of another number of classes
        ('{"0": "a"}', 'is damaged'),
        ('[0, 1]', 'is damaged'),
        ('[', 'is damaged'),
    ],
)
def test_names_that_are_none_are_refused(content, names, fine_tuned, tmp_path):
    run = shutil.copytree(fine_tuned[0], tmp_path / 'run')
    (run / 'class_names.json').write_text(content)
    if names == ():
        assert read_model(run).class_names == names
    else:
        with pytest.raises(UserError, match=names):
            read_model(run)


@pytest.mark.slow
def test_a_process_without_the_package_runs_the_file(pretrained, tmp_path):
    run = pretrained[0]
    export(run, tmp_path / 'out', say=lambda line: None)
    path, images = tmp_path / 'arrays.npz', images_of(7)
    np.savez(path, images=images)
    command = [sys.executable, '-I', '-c', ALONE, tmp_path / 'out', 'encoder', path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    actual = np.load(path)
    for name, values in expected_features(run, images).items():
        np.testing.assert_allclose(actual[name], values, atol=1e-5)


@pytest.mark.parametrize('what', ['encoder', 'classifier', 'reconstruction'])
def test_onnxruntime_gives_the_outputs_of_the_model(what, pretrained, fine_tuned, tmp_path):
    pytest.importorskip('jax2onnx')
    runtime = pytest.importorskip('onnxruntime')
    run = (fine_tuned if what == 'classifier' else pretrained)[0]
    lines = []
    export(run, tmp_path, to='onnx', what=what, say=lines.append)
    assert 'run in onnxruntime' in lines[0]
    session = runtime.InferenceSession(tmp_path / f'{what}.onnx')
    inputs = {'images': images_of(5)}
    if what == 'reconstruction':
        inputs['noise'] = np.random.default_rng(2).random((5, 16), np.float32)
    about = json.loads((tmp_path / f'{what}.onnx.json').read_text())
    names = [x['name'] for x in about['outputs']]
    assert [x.name for x in session.get_inputs()] == [x['name'] for x in about['inputs']]
    actual = dict(zip(names, session.run(names, inputs), strict=True))
    if what == 'reconstruction':
        patches, mask, size = expected_reconstruction(run, inputs['images'], inputs['noise'])
        np.testing.assert_array_equal(actual['mask'], mask)
        np.testing.assert_allclose(patchify(actual['reconstruction'], size), patches, atol=1e-3)
        return
    if what == 'encoder':
        expected = expected_features(run, inputs['images'])
    else:
        model, params = mae_jax.load(run)
        normalized = mae_jax.load_normalize(run)(inputs['images'])
        expected = {'logits': model.apply({'params': params}, normalized)}
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, atol=1e-4)


def test_what_jax2onnx_cannot_translate_is_told_in_a_sentence(pretrained, tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip('jax2onnx')

    def fail(*args, **kwargs):
        raise NotImplementedError('No plugins registered for primitive fft')

    monkeypatch.setattr(jax2onnx, 'to_onnx', fail)
    with pytest.raises(UserError, match='cannot translate the encoder .* primitive fft'):
        export(pretrained[0], tmp_path, to='onnx', say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_outputs_that_differ_leave_no_file(pretrained, tmp_path, monkeypatch):
    def wrong(path, inputs):
        outputs = run_stablehlo(path, inputs)
        return outputs | {'mean': outputs['mean'] + 1e-2}

    run_stablehlo = module._run_stablehlo
    monkeypatch.setattr(module, '_run_stablehlo', wrong)
    with pytest.raises(UserError, match='another mean'):
        export(pretrained[0], tmp_path / 'out', say=lambda line: None)
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'to': 'tflite'}, '--to=tflite is unknown'),
        ({'what': 'decoder'}, '--what=decoder is unknown'),
        ({'what': 'classifier'}, 'has no classifier'),
        ({'input_dtype': 'int8'}, '--input=int8 is unknown'),
    ],
)
def test_what_cannot_be_exported_is_refused(options, message, pretrained, tmp_path):
    with pytest.raises(UserError, match=message):
        export(pretrained[0], tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept_unless_it_may_be_replaced(pretrained, tmp_path):
    file = tmp_path / 'encoder.stablehlo'
    file.write_text('mine')
    with pytest.raises(UserError, match='--overwrite'):
        export(pretrained[0], tmp_path)
    assert file.read_text() == 'mine'
    export(pretrained[0], tmp_path, overwrite=True, say=lambda line: None)
    assert file.read_bytes()[:4] != b'mine'


def test_a_classifier_has_no_reconstruction(fine_tuned, tmp_path):
    with pytest.raises(UserError, match='has no decoder'):
        export(fine_tuned[0], tmp_path, what='reconstruction')
