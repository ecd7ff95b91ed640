"""Types of ext/workers.pyx: the base of Plane that objects and exchanges hold on to."""

class Workers:
    n_workers: int
