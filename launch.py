#!/usr/bin/env python
"""Plan, render or run a fine-tuning job: `python launch.py method=lora shard=zero3 gpus=8 mode=plan`."""

from launcher.main import main

if __name__ == "__main__":
    raise SystemExit(main())
