"""Suites of runs: rows of an ablation, pretrained, probed, fine-tuned; or the blocks of an encoder.

    suite.py     a suite's file and --set -> Suite: rows, seeds, and a config for each stage
    stage.py     one stage, which is one run of `mae_jax.run` in a process of its own
    run.py       all stages of a suite that are not done yet, one after another
    report.py    results.json, table.md and plot.png

It may import `experiment`, all that stands below it, and `runtime`; only `cli` imports it. Only a
stage's own process uses JAX, since an accelerator belongs to one process. Start reading with
`suite.py`.
"""
