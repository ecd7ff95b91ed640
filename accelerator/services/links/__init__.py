"""WAN links at run time: budgets, health, which origin goes by which, and what goes past their pacing. Shapes nothing
in the kernel: that is netd's."""
