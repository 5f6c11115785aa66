"""`fabric`, and `python -m fabric`: interrupted at any moment, even while the command line is imported, it says so."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line."""
    try:
        from fabric.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        os._exit(130)


if __name__ == "__main__":
    main()
