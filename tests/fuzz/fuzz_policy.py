"""Fuzz target of accelerator/policy: a seeded mutational fuzzer of whole policies.

    .venv/bin/python tests/fuzz/fuzz_policy.py [SECONDS] [SEED]

Seeds are the policies in config/. What must hold stands in tests/policy/policy_mutations.py: each input gives problems
(printable, at a place of its file) or a policy that compiles, and takes at most two seconds. An input that fails is
printed, so that it can be pasted into a test.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "policy"), str(ROOT)]

from policy_mutations import SEEDS, check_holds, mutate  # noqa: E402


def main(seconds: float, seed: int) -> int:
    random = Random(seed)
    corpus = list(SEEDS)
    n_inputs = n_policies = 0
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        files = [mutate(random.choice(corpus), random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
        started_s = time.process_time()
        try:
            policy = check_holds(*files)
            assert time.process_time() - started_s < 2, "takes more than two seconds"
        except Exception:
            print(f"seed {seed}, input {n_inputs}: {files!r}", file=sys.stderr)
            raise
        n_inputs += 1
        if policy is not None:
            n_policies += 1
            # What is still valid is mutated further, so that inputs get far from the seeds.
            if len(files) == 1 and len(files[0]) < 8000:
                if len(corpus) < 200:
                    corpus.append(files[0])
                else:
                    corpus[random.randrange(len(SEEDS), 200)] = files[0]
    print(f"{n_inputs} inputs, {n_policies} of them policies, seed {seed}")
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(float(arguments[0]) if arguments else 10.0, int(arguments[1]) if len(arguments) > 1 else 1))
