"""The CUDA engine: the same programs as on the CPU, as launches of kernels on a GPU. Imported on first use only."""
