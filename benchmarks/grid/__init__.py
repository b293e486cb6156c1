"""The closed form held against traces over many jobs: see benchmarks/closed_form.py."""
