"""The input pipeline: examples of a data set -> batches of pixels, in five subpackages.

    sources/     where examples come from: len(source), source[i] -> {'image', 'label', 'name'},
                 for segmentation with a 'mask' too, for detection with 'boxes'
    images/      an encoded image or an array -> pixels
    transforms/  pixels -> a training crop with augmentation, or an evaluation crop
    loader/      the order of examples, batches, threads and worker processes
    prepare/     `mae-jax prepare`: a source, resized and written as ArrayRecord shards

Everything runs on the host with NumPy and Pillow; normalisation and mixing are done on the device,
outside this package. It may import `runtime`, `files`, `registry`, `keys` and `errors`, and knows
nothing of models, tasks or training. Start reading with `loader/batches.py`.
"""
