"""Help texts."""

from __future__ import annotations

import click


class Group(click.Group):
    """A group that shows its help when called without arguments, with the exit code of invalid usage."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the arguments; at least one is required."""
        if not args and not ctx.resilient_parsing:
            click.echo(self.get_help(ctx), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands with the whole first sentence of their help, which Click would truncate."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, it.get_short_help_str(limit=1000)) for name, it in commands])


def help_section(title: str, *lines: str) -> str:
    """Returns a section of an epilog whose lines are not wrapped."""
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def examples(*lines: str) -> str:
    """An epilog with example commands."""
    return help_section("Examples:" if len(lines) > 1 else "Example:", *lines)
