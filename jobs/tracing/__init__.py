"""A job's memory, recorded without its device and without its weights: one rank of N on fake tensors.

`python -m jobs.trace` runs the job's own code (jobs.job and what it calls) under torch's FakeTensorMode, with a fake
process group in place of the other ranks, and records every storage that is made and freed. What the libraries do that
fake tensors cannot is replaced here, as little of it as possible:

    fake_cuda.py        fake tensors of device cuda, and autograd for them, in a process that has no driver
    cuda_runtime.py     torch.cuda: streams, properties and memory of the GPU that is planned for
    fake_tensors.py     what torch keeps from fake tensors: Module.to, foreach and fused steps, storage.resize_
    attention.py        the kernel that scaled_dot_product_attention would choose on the GPU
    autocast.py         torch.autocast("cuda") without CUDA
    process_group.py    the other ranks
    ddp.py fsdp.py      DistributedDataParallel, FSDP2; one file for each library
    huggingface.py      transformers' branches that look at values, and its loading of weights
    kernels.py          scratch memory inside kernels, which no tensor shows
    recorder.py         the dispatch mode that records, and answers what is asked by value
    categories.py       what each storage turned out to be
    job.py              jobs.job.Job with synthetic data, weights of the right shape and no files
    selftest.py         known small graphs with known bytes: a replacement that stops holding is noticed here
    session.py          puts all of it together, and takes it down again for tests

To add a library: one file with a docstring that says what fails and why the replacement has the same memory behaviour;
one function `install(target)` that patches and names the package version it was checked with; a call of it in
session.py; and a check in selftest.py, or in tests/unit/test_tracing_*.py, that fails once the patched code moves.

The patches are for this process alone. The launcher starts it as a subprocess and reads the trace file.
"""
