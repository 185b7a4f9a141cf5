"""Keeps the checkpoint with the highest score."""

import dataclasses

import orbax.checkpoint as ocp


@dataclasses.dataclass
class Best(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the step with the highest of `scores`, the newest of equals."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns for each checkpoint whether it is the best."""
        scores = {c.step: self.scores[c.step] for c in checkpoints if c.step in self.scores}
        best = max(scores.items(), key=rank)[0] if scores else None
        return [checkpoint.step == best for checkpoint in checkpoints]


def rank(step_and_score: tuple[int, float]) -> tuple[float, int]:
    """Sort key of (step, score): by score, then by step."""
    step, score = step_and_score
    return score, step
