"""What loading a module raises."""


class CUDADriverError(RuntimeError):
    pass
