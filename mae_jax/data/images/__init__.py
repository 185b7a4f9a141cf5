"""Encoded images -> pixels, the same for every source and every transform.

`decode.py` decides by the content of a file how it is read; `jpeg.py` decodes and resizes crops of
JPEGs through the C module `_jpeg.c`; `tiff.py` reads TIFFs, `pictures.py` all else that Pillow
opens; `masks.py` reads masks of classes; `outlines.py` draws polygons and masks of objects;
`limits.py` refuses files that would take too much memory; `arrays.py` converts between Pillow
images and arrays, and turns them. Imports nothing else of `data`. Start reading with `decode.py`.
"""
