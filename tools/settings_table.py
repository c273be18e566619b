"""Prints the table of settings for docs/settings.md, from store_service/config.py.

The page has the table between the comments `settings` and `/settings`; a test compares the two.
"""

import ast
import inspect

from store_service.config import Config, environment_variable


def meanings(source: str) -> dict[str, str]:
    """Returns the docstring below each field of a class, by the name of the field."""
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text).replace("\n", " ")
    return found


def default_of(field_name: str) -> str:
    """Returns the default of a field, as a value of its environment variable."""
    value = Config.model_fields[field_name].default
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def table() -> str:
    """Returns the table with a line for each setting, in the order of the code."""
    meaning_of = meanings(inspect.getsource(Config))
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name in Config.model_fields:
        if name not in meaning_of:
            raise SystemExit(f"store_service/config.py: {name} has no docstring below it")
        meaning = meaning_of[name].replace("|", "\\|")
        lines.append(f"| `{environment_variable(name)}` | `{default_of(name)}` | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
