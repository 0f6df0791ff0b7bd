"""What is computed between the products: aggregation, hidden layers, messages; plain or compiled.

:mod:`pdadmm.gnn.passes.protocol` says what a pass does, ``reference`` does it with NumPy and SciPy in any
precision, ``host`` calls the compiled kernels.
"""
