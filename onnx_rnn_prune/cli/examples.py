"""Examples at the end of a command's help."""


def examples(*lines: str) -> str:
    """An epilog that shows commands as they are typed, a line each."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
