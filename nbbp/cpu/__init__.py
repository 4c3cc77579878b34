"""The CPU engine: op kernels in explicit SIMD and plain loops, and the loop that runs a table of them."""
