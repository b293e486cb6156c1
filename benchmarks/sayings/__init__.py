"""What people say about memory, each kind of saying beside its plan: see benchmarks/folklore.py."""
