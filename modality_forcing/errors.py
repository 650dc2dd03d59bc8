"""The one exception that means "the user can mend this": the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """A mistake in the input, told in one line: what is wrong, where, and how to mend it."""

    def __init__(self, what: str, *, where: object = None, mend: str = ""):
        parts = [what if where is None else f"{where}: {what}"]
        if mend:
            parts.append(mend)
        super().__init__("; ".join(" ".join(str(part).split()) for part in parts))
