"""The one error a user sees: what is wrong, where, and what to do about it."""


class PruneError(Exception):
    """Something the user can mend.

    Args:
        what: what is wrong, as a clause without a full stop.
        where: the file, node, input or option that it concerns.
        remedy: what to do about it, as an imperative clause.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = " ".join(what.split())
        self.where = " ".join(where.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"


class Unmet(PruneError):
    """A promise that a result does not keep: outputs differ, or a budget cannot be met."""
