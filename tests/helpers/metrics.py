"""The sums behind the metrics of an evaluation, for comparison with sums by hand."""

import numpy as np
from clu.metrics import Collection


def sums_of(metrics: Collection) -> dict[str, np.ndarray]:
    """Returns totals by metric, `count` of examples, and hits and counts of every class."""
    sums = {}
    for name, metric in vars(metrics).items():
        if name == 'per_class':
            sums |= {'class_hits': np.asarray(metric.hits), 'class_count': np.asarray(metric.count)}
        elif not name.startswith('_'):
            sums |= {name: np.asarray(metric.total), 'count': np.asarray(metric.count)}
    return sums
