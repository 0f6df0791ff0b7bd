"""The version of the compiler that there is none of."""


def getVersion() -> tuple[int, int]:
    return 13, 0
