"""Defines every field of a pretraining run; the other configs change a few of them.

    python main.py --config=configs/default.py

The numbers are those of ViT-L/16 in "Masked Autoencoders Are Scalable Vision Learners"
(arXiv 2111.06377, Table 8) and of its official code. Unset fields are placeholders, so any
field can be given on the command line: `--config.num_steps=100 --config.model.depth=6`.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.task = 'pretrain'  # pretrain | classify | segment | knn | robustness | module:function
    config.mode = 'train'  # train | eval: measure the last checkpoint on the held-out images
    config.seed = 0
    config.batch_size = 4096  # global: over all devices, accumulation included
    config.num_epochs = 800.0
    config.num_steps = placeholder(int)  # overrides num_epochs
    config.max_images_seen = placeholder(int)  # where num_epochs is unset: the length of the run
    config.image_size = (224, 224)  # height, width; (96,) or --config.image_size=96 is a square
    config.init_from = placeholder(str)  # start from these weights: a run, a file, hf://owner/name
    config.new_channels = placeholder(str)  # average | repeat: init_from of other dataset.channels
    config.deterministic = False  # bit-identical reruns on a GPU too, somewhat slower

    config.model = model = ml_collections.ConfigDict()
    model.variant = 'vit_large'  # vit_tiny | vit_small | vit_base | vit_large | vit_huge
    model.patch_size = placeholder(int)  # unset: that of the variant, as for the next three
    model.width = placeholder(int)
    model.depth = placeholder(int)
    model.heads = placeholder(int)
    model.norm_eps = placeholder(float)  # of LayerNorm; unset: that of init_from, else 1e-6
    model.decoder_width = 512
    model.decoder_depth = 8
    model.decoder_heads = 16
    model.encoder_mask_tokens = False  # hidden patches go through the encoder too (Table 1c)
    # Of products and activations; parameters, statistics, softmax and loss are float32. bfloat16 |
    # float32 | auto: bfloat16, except on a CPU without instructions for it
    model.dtype = 'auto'
    # Of the residual stream, unless dtype is wider: float32 | bfloat16: less memory | auto: float32
    model.residual_dtype = 'auto'
    model.remat = 'none'  # none | block | dots: what the backward pass recomputes
    # auto: the fastest on this platform | plain | xla | cudnn: a GPU's, bfloat16 | pallas: a TPU's
    model.attention = 'auto'
    model.scan = False  # one compiled block instead of `depth` copies

    config.mask = mask = ml_collections.ConfigDict()
    mask.ratio = 0.75
    mask.strategy = 'random'  # random | block: as in BEiT | grid: one of every 2 x 2 is kept

    config.target = target = ml_collections.ConfigDict()
    target.name = 'normalized_pixel'  # pixel | normalized_pixel | pca | token
    target.loss_on = 'hidden'  # hidden | all: the patches in the loss
    target.components = 96  # pca: the number of largest coefficients ...
    target.sample = 4096  # ... in a basis fitted to this many of the run's first training crops
    target.tokenizer = placeholder(str)  # token: a file of scripts/convert_dvae.py, module:function
    target.codes = 8192  # token: size of the vocabulary

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = 'imagenet2012'  # digits | folder | prepared | synthetic | a TFDS name
    dataset.path = placeholder(str)  # folder, prepared: its root; TFDS: data_dir
    dataset.train_split = 'train'
    dataset.eval_split = 'validation'
    dataset.held_out_share = placeholder(float)  # without an evaluation split; unset: by the rule
    dataset.channels = 3
    dataset.bands = placeholder(tuple)  # (3, 2, 1): these bands of each file, counted from 0
    dataset.nodata = placeholder(float)  # of missing pixels: they get the mean of their image
    dataset.scale = 255.0  # image / scale, then (x - mean) / std
    dataset.mean = (0.485, 0.456, 0.406)
    dataset.std = (0.229, 0.224, 0.225)
    dataset.crop_scale = (0.2, 1.0)  # RandomResizedCrop: share of the area ...
    dataset.crop_ratio = (3 / 4, 4 / 3)  # ... and aspect ratio
    dataset.crop = 'retry'  # until it fits | clamp: to the image | fixed: of one size | center
    dataset.flip = True
    dataset.augment = ''  # rand-m9-mstd0.5-inc1 (RandAugment) | jitter-b0.4-c0.4-s0.4-h0.1
    dataset.eval_crop_share = placeholder(float)  # unset: .875 up to 224 pixels, 1 above
    dataset.apply_exif = False  # the original ignores EXIF orientation
    dataset.repeats = 1  # r crops and masks of each decoded image, counted as r examples
    dataset.resize = 'host'  # where to crop, resize, flip: host | device; see docs/performance.md
    dataset.canvas = 384  # device: side of the square that holds an image; larger ones are reduced
    dataset.threads = placeholder(int)  # of each process; unset: 1 a worker, else 1 a core up to 8
    dataset.workers = placeholder(int)  # processes that load; unset: 1 a core above 8 | 0: threads
    dataset.prefetch = 2  # batches that are loaded ahead
    dataset.timeout_s = 300.0  # the run ends if the loader yields no batch for this long
    dataset.on_error = 'raise'  # raise | skip: replace an unreadable image by its neighbour
    dataset.max_bad_share = 0.01  # skip: a larger share of unreadable images is an error
    dataset.synthetic_examples = 1_281_167  # size of the `synthetic` source

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = 'adamw'
    optimizer.base_lr = 1.5e-4  # learning rate = base_lr * batch_size / 256
    optimizer.min_lr = 0.0
    optimizer.schedule = 'cosine'  # cosine | linear: how the learning rate falls to min_lr
    optimizer.warmup_epochs = 40.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.05  # decoupled, times the learning rate
    optimizer.clip_norm = placeholder(float)  # global gradient norm; the paper does not clip
    optimizer.accumulate = 1  # micro-batches per step; the result is that of the whole batch
    optimizer.skip_nonfinite = 0  # n: skip updates that are not finite, stop at n in a row

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.fsdp = 1  # devices that share one copy of the parameters

    # Of several processes: how long they wait for each other at the start, and how long one may be
    # silent (it sends a heartbeat from a thread of its own) before it counts as lost
    config.connect_timeout_s = 300.0
    config.heartbeat_timeout_s = 100.0
    config.step_timeout_s = 1800.0  # a step or batch of evaluation that takes longer ends the run
    config.log_every_steps = 50
    config.loggers = ('tensorboard',)  # beside metrics.jsonl: tensorboard | wandb | mlflow | yours
    config.profile_steps = placeholder(tuple)  # (from, to): trace for TensorBoard's profiler
    config.eval_every_steps = 2500  # loss on held-out images under fixed masks; 0: never
    config.eval_examples = 4096  # number of these images
    config.image_every_steps = 2500  # masked | reconstructed | original; 0: never
    config.checkpoint_every_steps = 2500
    config.checkpoint_every_minutes = 15.0  # and whenever so much time has passed; 0: never
    config.keep_last = 3  # checkpoints kept, newest first ...
    config.keep_every_steps = placeholder(int)  # ... and permanently every multiple of this
    config.probe_at_end = False  # k-NN and linear probe of the encoder, trained and untrained

    config.online_probe = online_probe = ml_collections.ConfigDict()
    online_probe.every_epochs = 0.0  # k-NN and linear fit of the encoder while it trains; 0: never
    online_probe.share = 0.1  # of the labelled images, training and held out

    return config
