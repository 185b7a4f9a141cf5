"""The networks, as Flax linen modules: pure functions of parameters and images.

`vit.py` has the encoder and `mae.py` the masked autoencoder around it: start there. `classifier.py`
puts a head on the encoder, `segmentation/` heads for every pixel; `transformer.py`, `dense.py`,
`positions.py`, `unshuffle.py` and `patches.py` (the one place that knows the order of patches) are
what they are built from.
`options.py` lists what an encoder may have beside the original's, `relative.py` and `windows.py`
compute it.

Parameters are nested dicts of float32; nothing here depends on training, on data or on devices.
What an autoencoder hides and predicts is passed to it as objects (`mae_jax.pretext`).
May import `errors` and the packages below `models`, but neither `data` nor `pretext`.

In the shapes of signatures: B examples, H x W pixels, C channels, N patches of V values each
(V = P * P * C for patches of P x P pixels), K visible patches, T tokens, D the width of a token.
"""
