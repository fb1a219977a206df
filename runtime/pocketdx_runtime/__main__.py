"""``python -m pocketdx_runtime`` is ``pocketdx``, where scripts are not on the path."""

from pocketdx_runtime.cli import main

if __name__ == "__main__":
    main()
