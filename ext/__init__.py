"""The data plane: compiled, without the GIL. Knows rows and indices, never names; never imports `accelerator`."""
