"""No metric: every source counts as much (the control of PanDa's Table VI)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.similarity import Similarity, SimilarityContext

if TYPE_CHECKING:
    from panda_fusion.prompt import Prompt


class Constant(Similarity):
    """1 for every pair."""

    needs_target = False

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        return 1.0


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("constant", Constant, help="1 for every source")
