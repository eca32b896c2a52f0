"""The base class of PEFT methods: what is trainable, and how it enters the frozen backbone's forward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from panda_fusion.method import Method

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection


class PEFTMethod(Method):
    """A PEFT method. All tensors are float32; G is the pack axis (how many prompts run side by side).

    A prompt has two forms: the *trainable* tensors that the optimizer sees and the *stored* tensors of the
    prompt file. They are the same for most methods; a re-parameterisation stores its result only.
    """

    peft_types: ClassVar[tuple[str, ...]] = ()
    """Types of the PEFT library whose saved prompts this class reads, given its option `length`."""
    learning_rate: ClassVar[float] = 1e-2
    """Peak learning rate where the user gives none."""
    packable: ClassVar[bool] = True
    """Whether several prompts can share a forward pass; False where a prompt changes the backbone itself."""

    @abstractmethod
    def virtual_tokens(self) -> int:
        """Positions that the method takes in front of the text (0 for methods that take none)."""

    @abstractmethod
    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Make the trainable tensors of one prompt (no pack axis), float32 on the CPU.

        Args:
            backbone: the frozen backbone: its sizes (`backbone.shape`), and its embeddings, tokenizer and weights for
                methods that start from them (`panda_fusion.starting_points`).
            generator: the only source of randomness: the same generator state gives the same tensors.

        Raises:
            BackboneError: the method cannot be used with this backbone.
        """

    @abstractmethod
    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        """Say how trainable tensors enter the forward pass.

        Args:
            tensors: trainable tensors with the pack axis in front, [G, ...]. Gradients flow through.
            shape: sizes of the frozen backbone.

        Returns:
            What the backbone's forward pass takes in; prompt g must depend on slice g alone.
        """

    def stored(self) -> PEFTMethod:
        """The method that reads the stored form back: this one, unless `to_stored` changes the form."""
        return self

    @abstractmethod
    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]] | None:
        """Name and shape of every stored tensor (without the file's `peft.` in front).

        Files are checked without the model, so `shape` may lack what only the model tells (`layer_modules`, `layout`,
        `parameters`). A method that needs those answers None then, and its tensors are checked when the prompt
        meets its backbone.
        """

    def to_stored(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> dict[str, torch.Tensor]:
        """Turn one prompt's trainable tensors (no pack axis) into the stored form."""
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def from_stored(self, stored: Mapping[str, torch.Tensor], shape: BackboneShape) -> dict[str, torch.Tensor]:
        """Turn stored tensors of one prompt back into trainable ones.

        Raises:
            OptionError: where these options cannot start from a stored prompt.
        """
        return {name: tensor.detach().clone() for name, tensor in stored.items()}

    def token_matrix(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The stored prompt as a matrix [tokens, features], for metrics that average over tokens.

        Methods without tokens return one row with everything flattened (the default).
        """
        import torch

        return torch.cat([stored[name].reshape(1, -1) for name in sorted(stored)], dim=1)
