"""What a searched linear layer takes and puts out, for the whole training set at once."""

from dataclasses import dataclass

from torch import Tensor, nn

from rso_lab.paths import Change


class WholeLinear:
    """What a searched linear layer takes and puts out for the whole training set.

    A weight touches a row of each, so that a new mini-batch costs no more than picking its columns.
    """

    def __init__(self, layer: nn.Linear, x: Tensor):
        self.x = x.T.contiguous()  # (in_features, N)
        self.z = layer.weight @ self.x  # (out_features, N)
        if layer.bias is not None:
            self.z += layer.bias[:, None]

    def outputs(self, rows: Tensor) -> Tensor:
        """For these rows (B, out_features)."""
        return self.z.index_select(1, rows).T

    def inputs(self, rows: Tensor) -> "Columns":
        """For these rows, by feature."""
        return Columns(self.x, rows)

    def commit(self, change: Change) -> None:
        """The weight now has this change."""
        row = self.z[change.index[0]]
        if change.parameter == "bias":
            row += change.step
        else:
            row.add_(self.x[change.index[1]], alpha=change.step)


@dataclass(frozen=True)
class Columns:
    """Columns of x (F, N) seen as a tensor (B, F), of which one feature at a time is looked at."""

    x: Tensor
    rows: Tensor

    def __getitem__(self, where: tuple[slice, int]) -> Tensor:
        """One feature (B,), of all rows."""
        return self.x[where[1]].index_select(0, self.rows)
