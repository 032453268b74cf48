"""An override of a command line, KEY=VALUE, as text. Hydra's own parser reads the value (compose.py)."""


def split_override(override: str) -> tuple[str, str]:
    """Key and value, as they were typed, without + and ~ before the key; no = is an empty value."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value
