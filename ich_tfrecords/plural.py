"""How many of something, in words."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 slice`, `2,000 slices`; `many`: where that is more than `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
