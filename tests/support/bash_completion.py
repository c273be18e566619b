"""Tab completion in a real bash."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.timeouts import scaled_timeout

_SCRIPT = """
eval "$2"
COMP_WORDS=("${@:3}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$function" "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash_completions(setup_line: str, *words: str) -> list[str]:
    """Returns the completions that bash offers for the last word of a command.

    Args:
        setup_line: The line that the help says to add to ~/.bashrc.
        words: The command line, starting with the name of the command.
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", _SCRIPT, "bash", words[0], setup_line, *words],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=scaled_timeout(60),
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def completion_line(shell: str, help: str) -> str:
    """Returns the setup line for a shell from the help text of a command."""
    (line,) = [line.strip() for line in help.splitlines() if f"_COMPLETE={shell}_source" in line]
    return line
