"""NVTX ranges, kept: `named` has all that were opened, `opened` those that still are."""

available = True
named: list[str] = []
opened: list[str] = []


def RangePush(message: str, id_color: int = -1) -> None:
    named.append(message)
    opened.append(message)


def RangePop() -> None:
    opened.pop()
