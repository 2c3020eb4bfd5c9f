"""What is measured, and written to `results/`: run as a module from the repository, for example
`python -m benchmarks.speed.cpu`; `--help` names the options, `make bench` runs all.

    speed   a step, the 4-bit codes, int8 and generation on a processor, beside the libraries
    memory  the budget's peaks beside the ledger, beside other people's rules, and beside a card
    tasks   what runs of the shipped base reach: by method, rank, place, precision, and by library
    real    a real model: loss by precision, the tasks, speed
    gpu     QLoRA on a graphics card, and the memory claims executed under a cap
    kit     what they share: machine and versions, time and memory, short runs
"""
