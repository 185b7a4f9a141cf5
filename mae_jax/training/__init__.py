"""How a task is learned, the same for every task: loop, step, state, optimiser, sharding, metrics.

Knows tasks by the class `task.Task` alone, and nothing of configs. May import `visualization`,
`checkpoints` and what stands below them. Start with `loop.py`, then `state.py`.
"""
