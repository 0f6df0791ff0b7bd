"""Codecs and sums, one class a way to run them: NumPy's operations, the host library, CUDA.

Every class has the methods of :class:`pdadmm.kernels.plain.PlainKernels`. A system adds the passes of
its own equations to them (:mod:`pdadmm.admm.passes`). The compiled host library and the CUDA sources
are installed into this folder.
"""
