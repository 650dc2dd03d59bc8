"""The exception for mistakes of the user, which the command line prints as one line."""


class UserError(Exception):
    """A mistake of the user in one line: what is wrong, where, and how to fix it."""

    def __init__(self, what: str, *, where: object = None, hint: str = ""):
        parts = [what if where is None else f"{where}: {what}"]
        if hint:
            parts.append(hint)
        super().__init__("; ".join(" ".join(str(part).split()) for part in parts))
