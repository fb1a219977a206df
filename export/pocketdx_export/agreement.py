"""What a share of pictures with the same decision can be asked to be."""


def countable(share: float, pictures: int) -> float:
    """`share`, or where there are too few pictures to tell it, all of them but one: 0.99 of 32 would be every one.

    Args:
        share: that is wanted, 0 to 1.
        pictures: that are counted, at least 1.
    """
    # Not 1 - 1 / n: for some n, 3 or 171, that is a last bit above the share that is counted.
    return min(share, (pictures - 1) / pictures)
