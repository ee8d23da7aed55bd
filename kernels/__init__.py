"""Compiled kernels: powder patterns (Numba), the fused convolution (Triton). They import nothing of hxrd."""
