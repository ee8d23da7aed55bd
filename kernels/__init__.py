"""Compiled kernels: powder patterns (Numba) and the fused convolution (Triton). Nothing of hxrd is imported here."""
