"""What is known about one way to write the reference."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Row:
    """A known bug, or a correct rewriting, as replacements in reference_numpy.py."""

    name: str
    edits: dict                  # old code -> new code, see variants.py
    because: str = ""            # why it is wrong, in the words of the two sources
    seen_in: tuple = ()          # public issues: repository#number
    kind: str = "bug"            # or "rewriting"
    dtype: str = "float64"
    writes_caller: bool = False  # W_{t+1} is right, but the caller's array is not what it was
    refuses: bool = False        # W_{t+1} is right, but an error is missing
    sized: bool = False          # right at the sizes of the generic inputs, wrong at real ones
    special: str = ""            # W_{t+1} is right, but for these inputs: the generic case does not show it
    no_decimals: bool = False    # decimals have no arccos, and no logarithm of a negative mean

    @property
    def changes_value(self):
        return self.kind == "bug" and not (self.writes_caller or self.refuses or self.sized or self.special)

    def __str__(self):
        seen = f" Seen in {', '.join(self.seen_in)}." if self.seen_in else ""
        return f"{self.name} ({self.because}).{seen}"


def bug(name, edits, because, *seen_in, **facts):
    return Row(name, edits, because, seen_in, **facts)


def rewriting(name, edits, because="", **facts):
    return Row(name, edits, because, kind="rewriting", **facts)
