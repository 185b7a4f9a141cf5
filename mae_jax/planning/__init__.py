"""What a run would need of a machine that is not at hand: memory, operations, days.

    plan.py             make_plan(config, devices, data) -> Plan; speed on a chip, whether it fits
    memory.py           bytes of one device while it trains
    report.py           a plan as the text that `mae-jax plan` prints
    compile.py          the step of a run, compiled for chips that are not at hand
    gpu_target.py       what XLA must know of a GPU
    hlo.py              the text of a compiled program, read
    compiled.py         collectives, cycles, donation, host transfers of that program
    compiled_report.py  the same as the text that `mae-jax plan --compile` prints

A plan comes from shapes: nothing is allocated or compiled. It may import `experiment`, all that
stands below it, and `runtime`; only `cli` imports it. Start reading with `plan.py`.
"""
