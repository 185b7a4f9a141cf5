"""What a run would need of a machine that is not at hand: memory, operations, days.

    plan.py      make_plan(config, devices, data) -> Plan; speed on a chip, and whether it fits
    memory.py    bytes of one device while it trains
    report.py    a plan as the text that `mae-jax plan` prints

All numbers come from shapes: nothing is allocated or compiled. It may import `experiment`, all that
stands below it, and `runtime`; only `cli` imports it. Start reading with `plan.py`.
"""
