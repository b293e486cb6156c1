"""A job's memory, recorded without its device and without its weights: one rank of N on fake tensors.

`python -m jobs.trace` runs the job's own code (jobs.job and what it calls) under torch's FakeTensorMode, with a fake
process group in place of the other ranks, and records every storage that is made and freed. What the libraries do that
fake tensors cannot is replaced here, as little of it as possible:

    fake_cuda.py        fake tensors of device cuda, and autograd for them, in a process that has no driver
    cuda_runtime.py     torch.cuda: streams, properties and memory of the GPU that is planned for
    fake_tensors.py     what torch keeps from fake tensors: Module.to, foreach and fused steps, storage.resize_
    attention.py        the kernel that scaled_dot_product_attention would choose on the GPU
    process_group.py    the other ranks
    ddp.py fsdp.py zero.py quantised.py    DistributedDataParallel, FSDP2, DeepSpeed, bitsandbytes: a file for each
    huggingface.py      transformers' branches that look at values, and its loading of weights
    saving.py           files that are not written
    kernels.py          scratch memory inside kernels, which no tensor shows
    recorder.py         the dispatch mode that records
    blocks.py           what it writes down: storages, and the events of each device
    answers.py          what it answers where only data could tell
    repeats.py          results of operations that were seen before, made without FakeTensorMode
    shortcuts.py        what torch works out anew in every call, worked out once
    categories.py       what each storage turned out to be
    job.py              jobs.job.Job with synthetic data, weights of the right shape and no files
    selftest.py         known small graphs with known bytes: a replacement that stops holding is noticed here
    session.py          puts all of it together, once in a process
    server.py           many traces from one set of imports, each in a fork: for tests and benchmarks

To add a library: one file with a docstring that says what fails, why the replacement has the same memory behaviour, and
which version of the package it was checked with; one function `install(...)` that patches, and asserts that what it
patches is there; a call of it in session.py; and a check in selftest.py, or a trace in tests/distributed/test_trace.py,
that fails once the patched code moves. What a library holds or makes is told to the recorder: categorise() for tensors
that can be reached, within() around a function that makes them, hold() for memory that no tensor shows.

The patches are for this process alone. The launcher starts it as a subprocess and reads the trace file.
"""
