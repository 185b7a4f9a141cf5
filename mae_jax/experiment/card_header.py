"""The YAML header of a model card, by which the Hugging Face Hub lists and searches models."""

import json
from collections.abc import Sequence

LIBRARY = 'mae_jax'
PIPELINES = {
    'classify': 'image-classification',
    'segment': 'image-segmentation',
    'detect': 'object-detection',
}
"""Task -> what the Hub calls its use; that of all others is to extract features."""
TAGS = ('masked-autoencoder', 'vision-transformer', 'jax', 'flax')
TYPES = {
    'eval/top1': 'accuracy',
    'eval/top5': 'top-5 accuracy',
    'eval/miou': 'mean_iou',
    'eval/pixel_accuracy': 'pixel accuracy',
    'eval/loss': 'loss',
    'eval/box_ap': 'box AP',
    'eval/mask_ap': 'mask AP',
}
"""Metrics of metrics.jsonl -> their names on the Hub."""


def card_header(
    name: str, task: str, dataset: str, results: Sequence[tuple[str, str, float]]
) -> str:
    """Returns the header, in which the license is a comment, for its owner to fill in.

    Args:
      name: of the model.
      task: of the config.
      dataset: `dataset.name` of the config.
      results: metric, its name in the card, and value, of each result that was measured.
    """
    pipeline = PIPELINES.get(task, 'image-feature-extraction')
    lines = [
        '---',
        f'library_name: {LIBRARY}',
        f'pipeline_tag: {pipeline}',
        'tags:',
        *(f'- {tag}' for tag in TAGS),
        '# license: apache-2.0 (choose one, and remove the # and this)',
    ]
    measured = [
        (TYPES[metric], title, value) for metric, title, value in results if metric in TYPES
    ]
    if measured:
        lines += [
            'model-index:',
            f'- name: {_quoted(name)}',
            '  results:',
            f'  - task: {{type: {pipeline}}}',
            f'    dataset: {{name: {_quoted(dataset)}, type: {_quoted(dataset)}}}',
            '    metrics:',
        ]
        lines += [
            f'    - {{type: {_quoted(kind)}, name: {_quoted(title)}, value: {value:.4f}}}'
            for kind, title, value in measured
        ]
    return '\n'.join([*lines, '---'])


def _quoted(text: str) -> str:
    return json.dumps(text)  # a string of JSON is one of YAML
