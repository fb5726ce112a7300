"""One clip to put in: where the gradient comes from, and who is to read what."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_clip_pass.clips import ParameterSite
from onnx_clip_pass.gradients import FoundGradient, Gradient
from onnx_clip_pass.graph import Editor, Read, Scope
from onnx_clip_pass.rules import ClipChoice

__all__ = ["Edit"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A clip behind `name` of `scope`, for all its reads or for those `redirected`.

    `clipped` is the name of the clipped value where that is declared already.

    1. The value's producer gives it a new name, and the clip's last node bears the old one, so that
       whoever reads the gradient reads the clipped one.
    2. A read through which another gradient is computed goes to the new name: the raw value. So
       does a read by name in the attributes of a Gradient node.
    3. A gradient that is an input of its graph keeps its name as the raw value, and its other reads
       go to the clipped one.
    4. Where two parameters share a value and only one is clipped, the value stays as it is and the
       reads on that parameter's way to its update go to the clipped one.
    """

    scope: Scope
    name: str
    choice: ClipChoice
    found_gradients: list[FoundGradient]
    raw_reads: list[Read]
    redirected: list[Read] | None = None
    site: ParameterSite | None = None
    clipped: str = ""

    @property
    def gradient(self) -> Gradient:
        """The gradient, as that of the first of its parameters."""
        return self.found_gradients[0].gradient

    @property
    def count(self) -> int:
        """Of how many parameters the value is the gradient."""
        return len(
            {found_gradient.gradient.parameter.name for found_gradient in self.found_gradients}
        )

    @property
    def position(self) -> int:
        """Before which node of the scope the gradient is there."""
        made = self.scope.producers.get(self.name)
        return 0 if made is None else made[0] + 1

    def open(self, editor: Editor) -> tuple[str, str]:
        """Redirect reads for the clip; return the names of the raw and of the clipped gradient."""
        scope, name = self.scope, self.name
        if self.redirected is None:  # rules 1 and 2
            new = editor.fresh(f"clip/{name}/raw")
            editor.rename_producer(scope, name, new)
            editor.redirect(self.raw_reads, name, new)
        else:  # rules 3 and 4
            new = self.clipped or editor.fresh(f"clip/{name}/clipped")
            editor.redirect(self.redirected, name, new)
        if not self.clipped:
            editor.declare(scope, new, self.found_gradients[0].type)
        return (new, name) if self.redirected is None else (name, new)
