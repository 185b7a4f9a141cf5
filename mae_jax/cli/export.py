"""Exports a trained model as a file that runs without this package, for any batch size.

    mae-jax export runs/folder out/                              the encoder, as StableHLO
    mae-jax export runs/finetune out/ --to onnx                  the classifier, as ONNX
    mae-jax export runs/folder out/ --what reconstruction

Images go in as they are in the files, resized and cropped: the normalisation is inside. A JSON file
beside it describes inputs and outputs. StableHLO needs only jax and flatbuffers:

    exported = jax.export.deserialize(open('out/encoder.stablehlo', 'rb').read())
    features = exported.call(images)['mean']

ONNX needs `pip install 'mae_jax[onnx]'`. The file is run here, and its outputs are compared with
those of the model.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        'source', metavar='RUN', help='a run, a checkpoint, a converted file, hf://owner/name'
    )
    parser.add_argument('out', metavar='OUT', help='the folder to write to')
    parser.add_argument('--to', choices=('stablehlo', 'onnx'), default='stablehlo')
    parser.add_argument(
        '--what',
        choices=('encoder', 'classifier', 'reconstruction'),
        help='unset: the classifier, where one was trained, and else the encoder',
    )
    parser.add_argument(
        '--input',
        choices=('uint8', 'float32'),
        help='dtype of the images; unset: uint8, where dataset.scale is 255',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that exist')


def run(arguments: argparse.Namespace) -> None:
    """Exports one model."""
    from mae_jax.interop.export import export

    export(
        arguments.source,
        arguments.out,
        to=arguments.to,
        what=arguments.what,
        input_dtype=arguments.input,
        overwrite=arguments.overwrite,
    )
