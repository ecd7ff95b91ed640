"""The video accelerator: company video crosses the WAN once. This file holds the version and nothing else."""

__version__ = "0.1.0"
