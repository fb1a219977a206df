"""Which ``pip install`` brings a package that is missing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

_DISTRIBUTION = "pocketdx"
_NAME = re.compile(r"[\w.-]+")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")


def install_command(module: str, room: str) -> str:
    """Pip command that brings a module.

    Args:
        module: as in ``import``: "torch", "pi_heif.constants".
        room: of the command that needs it: "runtime", "train", ... Each but "runtime" has an extra of its name,
            which is preferred where it brings the module, and the guess where nothing is known of the module.
            Otherwise the smallest extra that brings it.
    """
    try:
        requirements = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        requirements = []
    return _command(_extra_for(module, room, requirements))


def _command(extra: str) -> str:
    return f"pip install '{_DISTRIBUTION}[{extra}]'" if extra else f"pip install {_DISTRIBUTION}"


def _extra_for(module: str, room: str, requirements: list[str]) -> str:
    """Name of the extra, "" for the plain package; ``requirements`` as in the distribution's metadata."""
    wanted = _normal(module.partition(".")[0])
    own = "" if room == "runtime" else room
    brings: dict[str, set[str]] = {"": set(), own: set()}
    for requirement in requirements:
        name, marker = _NAME.match(requirement), _EXTRA.search(requirement)
        if name is not None:
            brings.setdefault(marker[1] if marker else "", set()).add(_normal(name[0]))
    if wanted in brings[own] | brings[""]:
        return own
    others = [extra for extra in brings if wanted in brings[extra]]
    return min(others, key=lambda extra: (len(brings[extra]), extra), default=own)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
