"""Speed and memory of the stages beside a plain reference; `python -m benchmarks --help`."""
