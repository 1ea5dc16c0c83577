"""What `import lvlm_interp` and `lvlm-interp --help` cost beside a bare interpreter."""

from __future__ import annotations

import subprocess
import sys

from harness import Row, interleaved, row, run

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import lvlm_interp": ["-c", "import lvlm_interp"],
    "lvlm-interp --help": ["-m", "lvlm_interp", "--help"],
}


def rows() -> list[Row]:
    """Seconds per process, and the seconds that the command line may add (0.5)."""

    def process(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    seconds = interleaved(
        {name: (lambda a=a: process(a)) for name, a in COMMANDS.items()}, repeats=11
    )
    bare = seconds.pop("python -c pass")
    measured = [
        row(name, "seconds", value, baseline=bare, baseline_name="python -c pass")
        for name, value in seconds.items()
    ]
    added = seconds["lvlm-interp --help"] - bare
    return [
        *measured,
        row("lvlm-interp --help, added to a bare interpreter", "seconds", added, bound=0.5),
    ]


if __name__ == "__main__":
    run(rows)
