"""Prints the table of settings for docs/settings.md, made from store_service/config.py.

The page has it between the comments `settings` and `/settings`; tests/project compares the two.
"""

import ast
import inspect

from store_service.config import Config, environment_variable


def meanings(source: str) -> dict[str, str]:
    """The docstring under each field of a class, by the field's name."""
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
    """A default as people write it into the environment."""
    value = Config.model_fields[field_name].default
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def table() -> str:
    """One line for each setting, in the order of the code."""
    meaning_of = meanings(inspect.getsource(Config))
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name in Config.model_fields:
        if name not in meaning_of:
            raise SystemExit(f"store_service/config.py: {name} has no docstring under it")
        meaning = meaning_of[name].replace("|", "\\|")
        lines.append(f"| `{environment_variable(name)}` | `{default_of(name)}` | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
