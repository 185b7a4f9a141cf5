"""The pretext task: which patches are hidden, and what is predicted for them.

`masking.py` draws masks and `targets.py` defines targets: start there. `pca.py` fits the basis of
one target; `tokenizers.py` and `dvae.py` compute the tokens of another. A mask strategy or target
of one's own is registered in `STRATEGIES` or `TARGETS`, or named by 'module:function' in a config.

May import `errors`, `registry`, `files` and `runtime`; `models` and `data` are independent of it.

In the shapes of signatures: B examples, H x W pixels, C channels, N patches of V values each,
K visible patches, M values that are predicted for a patch.
"""
