"""Pictures of what a model computes: images in, columns of images out.

`reconstruction.py` draws what an autoencoder predicts, `attention.py` and `pca.py` an encoder's
attention and features; `drawing.py` turns arrays into pixels and columns into one picture. Start
there. `mae_jax.inference.visualize` reads the files and puts all of it together.

May import `models`, `keys` and `errors`. Images are [B, H, W, C], float and normalised, until they
are drawn; drawn ones are uint8 [B, H, W, 3].
"""
