"""The order of a run, from its config to its report.

What a run starts from is decided in this order (`starting_state.py`):
1. a checkpoint in the work directory: the run goes on from it;
2. `config.init_from`: the weights of another run, with a fresh optimiser at step 0;
3. the initialisation of `config.seed`.
"""

import contextlib
from typing import Any

from ml_collections import ConfigDict

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.data import given_sources, held_out_share, name_given
from mae_jax.experiment import workdir as workdirs
from mae_jax.experiment.cached_features import with_cached_features
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.knn import evaluate_knn
from mae_jax.experiment.report import announce, conclude, report_evaluation
from mae_jax.experiment.robustness import evaluate_robustness
from mae_jax.experiment.setup import make_setup
from mae_jax.experiment.starting_state import starting_state
from mae_jax.experiment.train import train_to_end
from mae_jax.files.buckets import check_work_directory, service_errors
from mae_jax.files.paths import expand_home
from mae_jax.runtime.processes import say
from mae_jax.training.state import TrainState

EVALUATIONS = {'knn': evaluate_knn, 'robustness': evaluate_robustness}
"""Tasks that train nothing: name -> function (config, workdir, given sources or None) -> values
by name."""


def run(
    config: ConfigDict, workdir: str, *, train: Any = None, held_out: Any = None
) -> TrainState | dict[str, float]:
    """Runs a config in a work directory, from where the directory's last checkpoint left it.

    Args:
      config: as a file of `configs/` returns it, fields changed at will; it is copied.
      workdir: a directory of this run alone, on a disk or in a bucket, `gs://bucket/run`.
      train: the training examples, in place of those that `dataset.name` names: an `ArraySource`,
        a `FileSource`, a `HuggingFaceSource`, or any object with the interface of
        `mae_jax.data.sources.protocol.Source`. The same must be given to resume the run.
      held_out: the examples for evaluation; None holds out some of `train`, at least ten of each
        class, or a fifth of a small class (`dataset.held_out_share`).

    Returns:
      The state after the last step; for 'knn' and 'robustness', accuracies or errors by name.

    Raises:
      UserError: something the user can mend; `Diverged` and `Preempted` have an exit status of
        their own.
    """
    workdir = expand_home(workdir)  # once, for every module that writes there
    check_work_directory(workdir)
    with service_errors(workdir):
        return _run(config, workdir, train, held_out)


def _run(
    config: ConfigDict, workdir: str, train: Any, held_out: Any
) -> TrainState | dict[str, float]:
    config = inherit(config if train is None else name_given(config), workdir)
    sources = given_sources(train, held_out, held_out_share(config))
    if evaluation := EVALUATIONS.get(config.task):
        return evaluation(config, workdir, sources)
    setup = make_setup(config, workdir, sources)
    config = setup.config
    with contextlib.ExitStack() as stack:
        for change in stack.enter_context(workdirs.hold(workdir, config)):
            say(change)
        checkpoints = stack.enter_context(
            Checkpoints(
                setup.workdir / 'checkpoints',
                keep_last=config.keep_last,
                keep_every_steps=config.keep_every_steps,
                score=setup.task.score,
                log=say,
            )
        )
        state = starting_state(setup, checkpoints)
        announce(setup, state)
        setup = with_cached_features(setup, state)
        if config.mode == 'eval':
            report_evaluation(setup, state)
            return state
        state = train_to_end(setup, checkpoints, state)
        conclude(setup, checkpoints, state)
        return state
