"""Policy text to checked values to flat tables. Pure: it reads files, but no clock, and logs nothing."""

from __future__ import annotations

from accelerator.policy.check import check_policy, check_texts, load_policy
from accelerator.policy.compile import Tables, compile_policy
from accelerator.policy.model import Policy

__all__ = ["Policy", "Tables", "check_policy", "check_texts", "compile_policy", "load_policy"]
