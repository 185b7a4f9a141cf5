"""A short run's optimiser, for tests of the state and the step."""

import optax

from mae_jax.training.optimizer import make_optimizer, make_schedule

STEPS = 20


def make_tx() -> optax.GradientTransformation:
    """Makes AdamW with a warm-up of five steps, then a cosine to the end of `STEPS`."""
    schedule = make_schedule(peak=1e-3, total_steps=STEPS, warmup_steps=5)
    return make_optimizer('adamw', schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
