"""The process of a run and the machine it is on.

    processes.py          several processes: joining them, messages from one
    failures.py           what an error means: a mistake, a fault of the program, a machine; the end
    interrupts.py         Ctrl-C: one line at once, from the start of a command to its exit
    preemption.py         SIGTERM, Ctrl-C and the cloud's notices, as a request to save and stop
    watchdog.py           ends a process that hangs
    profile.py            a profiler trace of some steps
    cores.py              processor cores of the process
    chips.py              peak speed and memory of accelerators
    xla_flags.py          the flags of XLA that a run sets
    compilation_cache.py  compiled programs, kept for the next start
    large_pages.py        memory pages of 2 MiB for training on a CPU
    library_noise.py      messages of libraries that the command line leaves out

It may import `files`, `registry`, `keys` and `errors`, and knows nothing of models, data and
configs. The process is changed (flags, signal handlers, log filters) when a function is called,
never on import. Start reading with `processes.py`.
"""
