"""Measures byzflow beside other libraries, on one machine and in one run.

    operators   `python -m benchmarks.operators`: the run; writes JSON, a table and a plot
    report      `python -m benchmarks.report FILE`: the Markdown tables and the goals, from that JSON
    workloads   what is measured: rules, shapes, data
    peers       how each other library is called
    ours        how byzflow is called, and its passes one by one
    case        one contestant on one workload, ready to run
    timing      interleaved runs
    memory      peak extra memory of one call
    apart       a function in a fresh process, with a limit on its time and memory
    preload     what all processes import
    flower_matrix every strategy of Flower's with `Robust` around it: `python -m benchmarks.flower_matrix`
    flower_round  `python -m benchmarks.flower_round`: that run, of a Flower server's step alone
    flower_step  a Flower server's step, from the replies to the model
    machine     what it ran on
    transport   `python -m benchmarks.transport`: arrays between two processes, see docs/transport.md
    echo        the two ends of an echo; echo_ours and echo_peers are those that take part
    plot        time by d and by n, with fitted slopes

See docs/performance.md.
"""
