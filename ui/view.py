"""What the user has selected on a run's screen."""

from dataclasses import dataclass


@dataclass
class View:
    at: float | None = None  # show the state at this step; None: the latest
    net: str = "G"
    cell: int = 0
    pick: int = 0  # index of the selected individual or edge
    near: bool = False  # show only the front
    axes: int = 0  # index of the axes of the scatter plot
