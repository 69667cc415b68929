"""What a failed conformance check raises (floor 3)."""


class ConformanceError(AssertionError):
    """A plugin breaks a law of its family.

    Attributes:
        law: the law, as a statement that should hold.
        where: the input or setting at which it failed.
        by: how far off it was, or what was found instead.
    """

    def __init__(self, law: str, where: str, by: str) -> None:
        super().__init__(f"{law}: failed at {where}: {by}")
        self.law = law
        self.where = where
        self.by = by
