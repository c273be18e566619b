"""How the command explains itself."""

import click

SETTINGS = "Settings come from the environment and from the file .env; docs/settings.md lists them."


class Group(click.Group):
    """A group that shows its help when it is called alone, with the exit code of a wrong call."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the arguments, of which there must be some."""
        if not args and not ctx.resilient_parsing:
            click.echo(self.get_help(ctx), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands with the whole first sentence of their help; Click would cut it off."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, it.get_short_help_str(limit=1000)) for name, it in commands])


def lines_of(title: str, *lines: str) -> str:
    """A part of an epilog whose lines stay as they are."""
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def epilog(*examples: str) -> str:
    """Commands that can be typed as they are, and where settings come from."""
    return f"{lines_of('Examples:' if len(examples) > 1 else 'Example:', *examples)}\n\n{SETTINGS}"
