"""What the questions add to persona vectors, where roles were asked different ones: least squares on two factors."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assistant_axis.errors import GeometryError

SPREAD = ", spread over all questions"
"""Says so in the design of a run."""


@dataclass(frozen=True)
class QuestionEffects:
    """The fit `activation = role + question` over rollouts, with question effects that sum to zero.

    Solved by the normal equations with the roles eliminated, `(diag(m) − Nᵀ diag(1/n) N) e = T − Nᵀ v`: `N` counts
    rollouts by role and question, `n` and `m` are its sums over questions and over roles, `v` are the roles' means and
    `T` the questions' sums.

    Attributes:
        role: of each rollout, counted from 0; all occur.
        question: of each rollout, counted from 0; all occur.
        asked: `N`, `[role, question]`, float64.
        inverse: pseudo-inverse of the system, `[question, question]`, float64.
    """

    role: Int[Tensor, "sample"]
    question: Int[Tensor, "sample"]
    asked: Float[Tensor, "role question"]
    inverse: Float[Tensor, "question question"]

    @classmethod
    def of(
        cls, role: Int[Tensor, "sample"], question: Int[Tensor, "sample"], *, connected: bool = True
    ) -> "QuestionEffects":
        """From the role and the question of every rollout, any numbers.

        Args:
            role: roles in order are rows of `asked`.
            question: questions in order are its columns.
            connected: refuse sets of roles that share no question; else each such set keeps a level of its own.

        Raises:
            GeometryError: two sets of roles share no question, so that roles and questions cannot be told apart.
        """
        roles, role = role.unique(return_inverse=True)
        questions, question = question.unique(return_inverse=True)
        asked = torch.zeros(len(roles), len(questions), dtype=torch.float64)
        asked.index_put_((role, question), torch.ones(len(role), dtype=torch.float64), accumulate=True)
        system = torch.diag(asked.sum(0)) - asked.T @ (asked / asked.sum(1, keepdim=True))
        values, basis = torch.linalg.eigh(system)
        zero = values < 1e-9 * values[-1].clamp_min(1e-12)
        if connected and int(zero.sum()) > 1 and len(questions) > 1:
            raise GeometryError(
                "Some roles share no question with the others, not even through a third, so role and question effects "
                "cannot be told apart. Ask more questions a role."
            )
        inverse = (basis * torch.where(zero, 0.0, 1 / values.masked_fill(zero, 1.0))) @ basis.T
        return cls(role, question, asked, inverse)

    def weights(self, combinations: Float[Tensor, "row role"]) -> Float[Tensor, "row sample"]:
        """Combinations of the adjusted role means as weights of the single rollouts, float32.

        Args:
            combinations: the weight of each role in each row; the identity gives the role means themselves.
        """
        a, asked = combinations.double(), self.asked.sum(1)
        effects = a / asked @ self.asked @ self.inverse
        return (((a + effects @ self.asked.T) / asked)[:, self.role] - effects[:, self.question]).float()
