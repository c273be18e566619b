"""Tab completion as a real bash does it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.patience import patience

_SCRIPT = """
eval "$2"
COMP_WORDS=("${@:3}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$function" "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed_by_bash(line_of_help: str, *words: str) -> list[str]:
    """What bash offers for the last word of a command.

    Args:
        line_of_help: What the help says to put into ~/.bashrc.
        words: The command from its name on.
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", _SCRIPT, "bash", words[0], line_of_help, *words],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def line_for(shell: str, help: str) -> str:
    """The line that the help of a command gives for a shell."""
    (line,) = [line.strip() for line in help.splitlines() if f"_COMPLETE={shell}_source" in line]
    return line
